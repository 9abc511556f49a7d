"""`python -m convert OWNER/NAME` against a local stand-in for the Hub: what is fetched, kept, resumed and explained."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from huggingface_hub import HfFileMetadata
from huggingface_hub.utils import XetFileData  # type: ignore[attr-defined]  # public, but loaded lazily

from convert import download, low_disk
from convert.run import Request, run
from tests.checkpoints import random_checkpoint
from tests.hub_server import HubServer, environment

ROOT = Path(__file__).parent.parent
MIB = 1 << 20
CHUNK = 10 * MIB
"""What huggingface_hub writes to disk at a time (constants.DOWNLOAD_CHUNK_SIZE)."""

TINY = "org/tiny"
OUTPUT = "tiny-Q8_0.gguf"
README = "---\nlicense: apache-2.0\nlanguage:\n- ja\n- en\n---\n# Tiny\n"
INDEX = "model.safetensors.index.json"
OTHERS = ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "onnx/config.json", "logo.png", "training_args.bin")

PROGRAM = "import os, runpy, shutil, signal, time, types; {}; runpy.run_module('convert', run_name='__main__')"
WITHOUT_PAUSES = "time.sleep = lambda seconds: None"
KILLED_ON_RETRY = "time.sleep = lambda seconds: os.kill(os.getpid(), signal.{})"
ALMOST_FULL = "shutil.disk_usage = lambda path: types.SimpleNamespace(free=1_000_000)"

CACHE_AND_LOW_DISK = pytest.mark.parametrize("option", [[], ["--low-disk"]], ids=["cache", "low disk"])


class Hub(HubServer):
    """A stand-in that calls `watch` with the name of each file that it is about to send."""

    def __init__(self) -> None:
        super().__init__()
        self.watch: Callable[[str], object] = str

    def __enter__(self) -> Hub:
        super().__enter__()
        return self

    def take_cut(self, length: int) -> int:
        self.watch(self.requests[-1].path.rpartition("/")[2])
        return super().take_cut(length)

    def cut_at(self, shard: str) -> None:
        """Break off `shard` after its first chunk."""

        def cut(name: str) -> None:
            self.cut_after = CHUNK + MIB if name == shard else None

        self.watch = cut

    def hang_up(self, after: int) -> None:
        """Break off the file that is being sent after so many bytes, and refuse all connections from now on."""
        self._http.shutdown()
        self._http.socket.close()
        self.cut_after = after

    @property
    def fetched(self) -> list[str]:
        """The files that were asked for with GET, by their paths in the repository."""
        files = (request for request in self.requests if request.method == "GET" and "/resolve/" in request.path)
        return [re.sub(".*/resolve/[^/]+/", "", request.path) for request in files if request.status != 302]

    @property
    def fetched_shards(self) -> list[str]:
        return [name for name in self.fetched if name.endswith((".safetensors", ".bin"))]

    def ranges(self, shard: str) -> list[str | None]:
        """The Range of each GET for a shard."""
        return [request.range for request in self.downloads(shard)]


@dataclass
class User:
    """Somebody with a Hub cache in `home` who converts into the folder `output`."""

    home: Path
    output: Path

    def convert(
        self, hub: HubServer, *arguments: str, source: str = TINY, before: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m convert`; `before` is Python to run first, `settings` are for the environment."""
        program = ["-c", PROGRAM.format(before)] if before else ["-m", "convert"]
        return subprocess.run(
            [sys.executable, *program, source, "--output", str(self.output), "--quant", "Q8_0", *arguments],
            env=environment(hub, self.home) | {"PYTHONPATH": str(ROOT)} | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def gets(self, hub: HubServer, *arguments: str, **kw: str) -> Path:
        """Convert and succeed; the one path that is all of stdout."""
        done = self.convert(hub, *arguments, **kw)
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.removesuffix("\n"))
        assert path.is_file(), done.stdout
        return path

    def is_told(self, hub: HubServer, *arguments: str, **kw: str) -> str:
        """Convert and fail with exit code 1; the message. Nothing was made, replaced or printed on stdout."""
        before = self.has
        done = self.convert(hub, *arguments, **kw)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        assert self.has == before
        return done.stderr[done.stderr.index("convert: ") :]

    def is_cut_off(self, hub: HubServer, *arguments: str, by: str, code: int) -> str:
        """Convert and be ended by a signal at the first retry; what was on stderr. Nothing was made or printed."""
        done = self.convert(hub, *arguments, before=KILLED_ON_RETRY.format(by))
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert not (self.output / OUTPUT).exists()
        return done.stderr

    @property
    def has(self) -> dict[str, bytes]:
        """The files in the output folder by name, without the hidden ones: the lock and a download that was kept."""
        return {path.name: path.read_bytes() for path in self.output.glob("[!.]*")}

    @property
    def low_disk_folder(self) -> list[str]:
        """The weights, whole or in part, in a folder for --low-disk."""
        return sorted(path.name for path in self.output.glob(".download-*/*.safetensors*") if path.name != INDEX)

    @property
    def cache(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of all that is in the Hub's cache."""
        found = {path.relative_to(self.home).as_posix(): path.stat() for path in self.home.rglob("*") if path.is_file()}
        return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}

    def snapshot(self, commit: str) -> Path:
        return self.home / "hub" / "models--org--tiny" / "snapshots" / commit


@dataclass
class Conversion:
    """One that went well, for all the tests that only look at it."""

    hub: Hub
    commit: str
    user: User
    stdout: str
    stderr: str
    fetched: list[str]

    @property
    def gguf(self) -> Path:
        return self.user.output / OUTPUT

    def copy(self, folder: Path) -> User:
        """A user in the same state, with whom a test may do what it likes."""
        user = User(folder / "home", folder / "models")
        shutil.copytree(self.user.home, user.home, symlinks=True)
        shutil.copytree(self.user.output, user.output)
        return user


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def gone() -> Hub:
    """A Hub that cannot be reached any more."""
    with Hub() as hub:
        return hub


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path / "home", tmp_path / "models")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards, each of more than a megabyte as the Hub's LFS files are, among other files."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    random_checkpoint(folder, vocab_size=1200, dtype="float32", shards=3)
    (folder / "README.md").write_text(README)
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(2 * MIB))
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in a single file that is larger than what huggingface_hub writes at a time."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    return random_checkpoint(folder, layers=1, vocab_size=7000, dtype="float32")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in shards the first two of which are larger than what huggingface_hub writes at a time."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    return random_checkpoint(folder, layers=1, vocab_size=12000, dtype="float32", shards=3)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Conversion]:
    folder = tmp_path_factory.mktemp("converted")
    user = User(folder / "home", folder / "models")
    with Hub() as hub:
        repo = hub.add(TINY, tiny)
        done = user.convert(hub)
        assert done.returncode == 0, done.stderr
        yield Conversion(hub, repo.commit, user, done.stdout, done.stderr, hub.fetched)


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model*.safetensors"))


def tensors(path: Path) -> dict[str, tuple[Any, ...]]:
    return {t.name: (t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in GGUFReader(path).tensors}


def metadata(path: Path, key: str) -> Any:
    field = GGUFReader(path).get_field(key)
    return field and field.contents()


def revision(path: Path) -> Any:
    return metadata(path, "weblab_local.source.revision")


def gguf_of(folder: Path, output: Path) -> Path:
    """The GGUF of a folder, made without the Hub."""
    return run(Request(str(folder), None, ["Q8_0"], output))[0]


def source(path: Path) -> dict[str, Any]:
    """What the manifest of a GGUF says about its source, the shards as SHA-256 by name."""
    recorded = json.loads(path.with_suffix(".json").read_text())["source"]
    return {**recorded, "shards": {shard["name"]: shard["sha256"] for shard in recorded["shards"]}}


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in shards(folder)}


def test_only_what_a_conversion_needs_is_fetched(converted: Conversion, tiny: Path) -> None:
    small = ["README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX]
    assert sorted(converted.fetched) == sorted([*small, *shards(tiny)])


def test_the_path_of_the_result_is_all_of_stdout(converted: Conversion) -> None:
    assert converted.stdout == f"{converted.gguf}\n"
    assert {*converted.user.has} == {OUTPUT, "tiny-Q8_0.json"}


def test_a_repository_gives_the_same_tensors_as_its_folder(converted: Conversion, tiny: Path, tmp_path: Path) -> None:
    assert tensors(converted.gguf) == tensors(gguf_of(tiny, tmp_path))


def test_a_snapshot_in_the_cache_given_as_a_folder_gives_the_same_file_as_its_repository(
    converted: Conversion, tmp_path: Path
) -> None:
    made = gguf_of(converted.user.snapshot(converted.commit), tmp_path)
    assert made.read_bytes() == converted.gguf.read_bytes()


def test_the_gguf_says_where_it_is_from_and_what_the_model_card_says(converted: Conversion) -> None:
    keys = ["source.huggingface.repository", "source.url", "name", "organization", "license", "languages"]
    assert [metadata(converted.gguf, f"general.{key}") for key in keys] == [
        TINY,
        f"https://huggingface.co/{TINY}/tree/{converted.commit}",
        "tiny",
        "org",
        "apache-2.0",
        ["ja", "en"],
    ]
    assert revision(converted.gguf) == converted.commit


def test_the_manifest_names_repository_commit_and_the_hash_of_each_shard(converted: Conversion, tiny: Path) -> None:
    recorded = source(converted.gguf)
    assert (recorded["repository"], recorded["revision"]) == (TINY, converted.commit)
    assert recorded["shards"] == hashes(tiny)


def test_at_the_end_it_is_told_how_to_free_the_cache(converted: Conversion, tmp_path: Path) -> None:
    user = converted.copy(tmp_path)
    *_, holds, to_free, next_step = converted.stderr.splitlines()
    assert next_step.startswith("Next: ")
    size = sum(size for name, (size, _) in user.cache.items() if "/blobs/" in name)
    assert holds == f"The Hub's cache holds {size / 1e6:.1f} MB of {TINY}, no longer needed to run the model."
    assert to_free == f"To free it: hf cache rm model/{TINY}"
    program, *arguments = shlex.split(to_free.removeprefix("To free it: "))
    hf = shutil.which(program, path=Path(sys.executable).parent)
    assert hf is not None
    env = environment(converted.hub, user.home)
    subprocess.run([hf, *arguments, "--yes"], env=env, check=True, capture_output=True, timeout=60)
    assert not any("/blobs/" in name for name in user.cache)


def test_bin_files_are_fetched_where_there_are_no_safetensors(hub: Hub, user: User, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "tiny", form="bin", shards=2)
    hub.add(TINY, folder)
    made = user.gets(hub, "--low-disk")
    assert hub.fetched_shards == sorted(path.name for path in folder.glob("*.bin"))
    assert tensors(made) == tensors(gguf_of(folder, tmp_path / "other"))


def test_safetensors_are_preferred_to_the_same_weights_as_bin(hub: Hub, user: User, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "tiny", form="bin")
    random_checkpoint(folder)
    hub.add(TINY, folder)
    user.gets(hub)
    assert hub.fetched_shards == ["model.safetensors"]


@pytest.mark.parametrize("name", ["refs/pr/4", "c" * 40])
def test_a_revision_is_a_pull_request_or_a_commit(hub: Hub, user: User, tiny: Path, tmp_path: Path, name: str) -> None:
    proposed = random_checkpoint(tmp_path / "proposed", seed=4)
    repo = hub.add(TINY, tiny, revisions={name: proposed})
    made = user.gets(hub, "--revision", name)
    assert revision(made) == repo.find(name)[0] != repo.commit
    assert tensors(made) == tensors(gguf_of(proposed, tmp_path / "other"))


def test_a_second_run_finds_the_result_up_to_date_and_fetches_nothing(converted: Conversion, tmp_path: Path) -> None:
    user = converted.copy(tmp_path)
    shutil.rmtree(user.home)
    converted.hub.requests.clear()
    before = user.has
    again = user.convert(converted.hub)
    assert (again.returncode, again.stdout) == (0, f"{user.output / OUTPUT}\n")
    assert again.stderr == f"{user.output / OUTPUT} is up to date.\n"
    assert [request.path.partition("?")[0] for request in converted.hub.requests] == [f"/api/models/{TINY}"]
    assert user.has == before


def test_a_new_commit_replaces_the_result_only_with_force(hub: Hub, converted: Conversion, tmp_path: Path) -> None:
    user = converted.copy(tmp_path)
    newer = random_checkpoint(tmp_path / "newer", seed=1)
    hub.add(TINY, newer, commit="b" * 40)
    message = user.is_told(hub)
    assert "not made from this checkpoint as it is now" in message
    assert "Give --force to replace it" in message
    assert hub.fetched == []
    made = user.gets(hub, "--force")
    assert revision(made) == "b" * 40
    assert tensors(made) == tensors(gguf_of(newer, tmp_path / "other"))


@CACHE_AND_LOW_DISK
def test_a_download_that_breaks_off_goes_on_in_the_same_run(
    hub: Hub, user: User, single: Path, tmp_path: Path, option: list[str]
) -> None:
    hub.add(TINY, single)
    hub.cut_after = CHUNK + MIB
    made = user.gets(hub, *option, before=WITHOUT_PAUSES)
    assert hub.ranges("model.safetensors") == [None, f"bytes={CHUNK}-"]
    assert tensors(made) == tensors(gguf_of(single, tmp_path / "other"))
    assert list(user.output.glob(".download-*")) == []


@CACHE_AND_LOW_DISK
def test_a_file_is_fetched_again_after_the_connection_was_reset(
    hub: Hub, user: User, single: Path, tmp_path: Path, option: list[str]
) -> None:
    hub.add(TINY, single)
    hub.cut_after, hub.cut_by_reset = 5 * MIB, True
    made = user.gets(hub, *option, before=WITHOUT_PAUSES)
    assert hub.fetched_shards == ["model.safetensors"] * 2
    assert tensors(made) == tensors(gguf_of(single, tmp_path / "other"))


def test_a_connection_that_does_not_come_back_is_explained_and_finished_files_are_kept(
    hub: Hub, user: User, tiny: Path
) -> None:
    hub.add(TINY, tiny)
    first, second, *rest = shards(tiny)
    hub.watch = lambda name: hub.hang_up(after=MIB) if name == second else None
    message = user.is_told(hub, before=WITHOUT_PAUSES)
    assert f"{TINY} is not whole in the Hub's cache, and asking the Hub failed" in message
    assert "Check the network and run this again; what is in the Hub's cache is not fetched twice." in message
    assert hub.fetched_shards == [first, second]
    with Hub() as back:
        back.add(TINY, tiny)
        user.gets(back)
        assert back.fetched_shards == [second, *rest]


@pytest.mark.parametrize(
    ("settings", "option"),
    [({"HF_HUB_OFFLINE": "1"}, []), ({}, ["--low-disk"])],
    ids=["HF_HUB_OFFLINE", "no network, low disk"],
)
def test_without_the_hub_the_cache_is_converted(
    converted: Conversion, gone: Hub, tmp_path: Path, settings: dict[str, str], option: list[str]
) -> None:
    user = User(converted.user.home, tmp_path)
    before = user.cache
    made = user.gets(gone, *option, **settings)
    assert made.read_bytes() == converted.gguf.read_bytes()
    assert user.cache == before


def test_without_the_hub_a_result_is_known_to_be_up_to_date(converted: Conversion, gone: Hub) -> None:
    done = converted.user.convert(gone, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (0, f"{converted.gguf}\n")
    assert done.stderr == (
        f"The Hub cannot be asked; taking {TINY} as it is in its cache, at {converted.commit[:12]}.\n"
        f"{converted.gguf} is up to date.\n"
    )


def test_without_the_hub_a_repository_that_is_not_cached_is_explained(user: User, gone: Hub) -> None:
    message = user.is_told(gone, HF_HUB_OFFLINE="1")
    assert f"{TINY} is not in the Hub's cache, and HF_HUB_OFFLINE forbids to fetch it.\nUnset" in message
    message = user.is_told(gone)
    assert f"{TINY} is not in the Hub's cache, and asking the Hub failed: " in message
    assert "Check the network and run this again" in message


@pytest.mark.parametrize("lost", ["the second shard", "all shards", INDEX])
def test_without_the_hub_a_snapshot_that_is_not_whole_is_named_by_what_is_missing(
    converted: Conversion, tiny: Path, tmp_path: Path, lost: str
) -> None:
    user = User(tmp_path / "home", tmp_path / "models")
    shutil.copytree(converted.user.home, user.home, symlinks=True)
    losses = {"the second shard": shards(tiny)[1:2], "all shards": shards(tiny)}.get(lost, [lost])
    for name in losses:
        (user.snapshot(converted.commit) / name).unlink()
    message = user.is_told(converted.hub, HF_HUB_OFFLINE="1")
    named = "weights" if lost == INDEX else ", ".join(losses)
    assert f"{TINY} is not whole in the Hub's cache: {named} missing, and HF_HUB_OFFLINE forbids" in message


def test_a_gated_repository_without_a_token_is_explained(hub: Hub, user: User, tiny: Path) -> None:
    hub.add(TINY, tiny, gated=True, granted={"hf_mine"})
    for settings in ({}, {"HF_TOKEN": "hf_other"}):
        message = user.is_told(hub, **settings)
        assert f"{TINY} is gated" in message
        assert f"Accept them on {hub.url}/{TINY}, then type `hf auth login`" in message


@CACHE_AND_LOW_DISK
def test_a_token_opens_a_gated_repository_and_does_not_follow_a_redirect(
    hub: Hub, user: User, tiny: Path, option: list[str]
) -> None:
    hub.add(TINY, tiny, gated=True, granted={"hf_mine"})
    hub.redirect = True
    user.gets(hub, *option, HF_TOKEN="hf_mine")
    for shard in shards(tiny):
        assert [(r.path.split("/")[1], r.token) for r in hub.downloads(shard)] == [("cdn", None)]


@pytest.mark.parametrize(
    ("repository", "arguments", "told"),
    [
        ("org/none", [], "There is no repository org/none on the Hub, or it is private.\nCheck the spelling"),
        ("org--tiny/x", [], "org--tiny/x cannot be the name of a repository on the Hub: "),
        (TINY, ["--revision", "v9"], f"{TINY} has no revision 'v9'.\nIts branches and commits are listed on "),
        ("org/gguf", [], "org/gguf holds no weights in .safetensors or .bin that could be converted.\n"),
    ],
    ids=["repository", "name", "revision", "weights"],
)
def test_what_the_hub_has_not_is_explained(
    hub: Hub, user: User, tiny: Path, tmp_path: Path, repository: str, arguments: list[str], told: str
) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF")
    hub.add(TINY, tiny)
    hub.add("org/gguf", tmp_path / "gguf")
    assert told in user.is_told(hub, *arguments, source=repository)
    assert hub.fetched == []


@CACHE_AND_LOW_DISK
def test_a_shard_that_the_index_names_and_the_repository_has_not_is_named(
    hub: Hub, user: User, tiny: Path, tmp_path: Path, option: list[str]
) -> None:
    last = shards(tiny)[-1]
    hub.add(TINY, Path(shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns(last))))
    assert last in user.is_told(hub, *option)
    assert list(user.output.glob(".download-*")) == []


@pytest.mark.parametrize(
    ("option", "remedy"),
    [([], "set HF_HOME to a larger disk, or use --low-disk"), (["--low-disk"], "or choose another --output")],
    ids=["cache", "low disk"],
)
def test_a_download_for_which_there_is_no_room_is_refused_before_it_begins(
    hub: Hub, user: User, tiny: Path, option: list[str], remedy: str
) -> None:
    hub.add(TINY, tiny)
    message = user.is_told(hub, *option, before=ALMOST_FULL)
    assert re.match(r"convert: Not enough disk space in .+: \d\.\d MB to download, 1\.0 MB free\.\n", message)
    assert remedy in message
    assert hub.fetched == []


def test_low_disk_holds_one_shard_at_a_time_and_gives_the_same_file(
    hub: Hub, user: User, tiny: Path, converted: Conversion
) -> None:
    hub.add(TINY, tiny)
    held: dict[str, list[str]] = {}
    hub.watch = lambda name: held.update({name: user.low_disk_folder})
    made = user.gets(hub, "--low-disk")
    assert {shard: held[shard] for shard in shards(tiny)} == {shard: [f"{shard}.part"] for shard in shards(tiny)}
    assert list(user.output.glob(".download-*")) == []
    assert user.cache == {}
    assert made.read_bytes() == converted.gguf.read_bytes()
    assert source(made)["shards"] == hashes(tiny)


def test_low_disk_takes_what_is_in_the_cache_and_leaves_it_there(
    converted: Conversion, tiny: Path, tmp_path: Path
) -> None:
    user = User(tmp_path / "home", tmp_path / "models")
    shutil.copytree(converted.user.home, user.home, symlinks=True)
    lost = shards(tiny)[1]
    (user.snapshot(converted.commit) / lost).unlink()
    before = user.cache
    converted.hub.requests.clear()
    assert user.gets(converted.hub, "--low-disk").read_bytes() == converted.gguf.read_bytes()
    assert converted.hub.fetched_shards == [lost]
    assert user.cache == before


@pytest.mark.parametrize(("signal", "code", "form"), [("SIGINT", 130, "single"), ("SIGKILL", -9, "large")])
def test_low_disk_goes_on_with_the_first_shard_after_it_was_cut_off(
    hub: Hub, user: User, request: pytest.FixtureRequest, signal: str, code: int, form: str
) -> None:
    folder: Path = request.getfixturevalue(form)
    hub.add(TINY, folder)
    first, *rest = shards(folder)
    hub.cut_after = CHUNK + MIB
    said = user.is_cut_off(hub, "--low-disk", by=signal, code=code)
    assert ("the same command goes on from there" in said) == (signal == "SIGINT")
    hub.requests.clear()
    made = user.gets(hub, "--low-disk")
    assert hub.ranges(first) == [f"bytes={CHUNK}-"]
    assert hub.fetched_shards == [first, *rest]
    assert list(user.output.glob(".download-*")) == []
    assert source(made)["shards"] == hashes(folder)


def test_low_disk_leaves_nothing_when_it_is_interrupted_at_a_later_shard(hub: Hub, user: User, large: Path) -> None:
    hub.add(TINY, large)
    hub.cut_at(shards(large)[1])
    user.is_cut_off(hub, "--low-disk", by="SIGTERM", code=130)
    assert user.has == {}
    assert list(user.output.glob(".download-*")) == []


def test_low_disk_makes_room_for_the_first_shard_after_it_was_killed_at_a_later_one(
    hub: Hub, user: User, large: Path
) -> None:
    hub.add(TINY, large)
    first, second, *rest = shards(large)
    hub.cut_at(second)
    user.is_cut_off(hub, "--low-disk", by="SIGKILL", code=-9)
    assert user.low_disk_folder == [f"{second}.part"]
    hub.requests.clear()
    held: dict[str, list[str]] = {}
    hub.watch = lambda name: held.update({name: user.low_disk_folder})
    user.gets(hub, "--low-disk")
    assert held[first] == [f"{first}.part"]
    assert hub.fetched_shards == [first, second, *rest]
    assert {*user.has} == {OUTPUT, "tiny-Q8_0.json"}
    assert list(user.output.glob(".download-*")) == []


def test_low_disk_explains_a_connection_that_does_not_come_back_and_goes_on_when_it_does(
    hub: Hub, user: User, large: Path
) -> None:
    hub.add(TINY, large)
    first, *rest = shards(large)
    hub.watch = lambda name: hub.hang_up(after=CHUNK + MIB) if name == first else None
    message = user.is_told(hub, "--low-disk", before=WITHOUT_PAUSES)
    assert f"Downloading {TINY} failed: " in message
    assert "Check the network and the free disk space, then run this again" in message
    with Hub() as back:
        back.add(TINY, large)
        user.gets(back, "--low-disk")
        assert back.fetched_shards == [first, *rest]
        assert back.ranges(first) == [f"bytes={CHUNK}-"]


def test_low_disk_does_not_use_what_an_earlier_run_left_damaged(hub: Hub, user: User, single: Path) -> None:
    repo = hub.add(TINY, single)
    part = user.output / f".download-org--tiny-{repo.commit[:12]}" / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(5 * MIB))
    message = user.is_told(hub, "--low-disk")
    assert "model.safetensors arrived damaged: its SHA-256 is wrong.\nRun this again" in message
    assert not part.exists()
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(bytes((single / "model.safetensors").stat().st_size + 1))
    hub.requests.clear()
    user.gets(hub, "--low-disk")
    assert hub.ranges("model.safetensors") == [None]


def test_low_disk_leaves_what_is_stored_by_xet_to_huggingface_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, single: Path
) -> None:
    stored_by_xet = HfFileMetadata("c" * 40, "0" * 64, "", 1, xet_file_data=XetFileData("", ""))

    def fetch(_: str, name: str, *, local_dir: Path, **__: str) -> str:
        return str(shutil.copy(single / name, local_dir))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(low_disk, "get_hf_file_metadata", lambda _: stored_by_xet)
    monkeypatch.setattr(low_disk, "hf_hub_download", fetch)
    found = download.HubCheckpoint(TINY, "main", "c" * 40, {"config.json": 1, "model.safetensors": 1})
    with low_disk.LowDiskFolder(found, tmp_path, print) as folder:
        folder.path.mkdir()
        assert folder.open().shards == ["model.safetensors"]
