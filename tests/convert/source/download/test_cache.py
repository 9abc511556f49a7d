"""Downloads through the Hub's cache: only what is needed, resumed, offline, every failure explained."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.convert.source.download.support import (
    ALMOST_FULL,
    CACHE_AND_LOW_DISK,
    CHUNK,
    INDEX,
    MIB,
    OUTPUT,
    TINY,
    WITHOUT_PAUSES,
    Conversion,
    Hub,
    User,
    gguf_of,
    hashes,
    metadata,
    revision,
    shards,
    source,
    tensors,
)
from tests.support.checkpoints import random_checkpoint
from tests.support.hub_server import environment


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


WITHOUT_SYMLINKS = """
def symlink(*_):
    raise OSError(22, "A required privilege is not held by the client", None, 1314)

os.symlink = symlink
"""
"""As on Windows without developer mode."""


def test_a_cache_without_symlinks_will_do(converted: Conversion, hub: Hub, user: User, gone: Hub, tiny: Path) -> None:
    hub.add(TINY, tiny)
    as_on_windows = f"exec({WITHOUT_SYMLINKS!r})"
    made = user.gets(hub, before=as_on_windows)
    assert made.read_bytes() == converted.gguf.read_bytes()
    assert not any(path.is_symlink() for path in user.home.rglob("*"))
    made.unlink()
    made.with_suffix(".json").unlink()
    again = user.convert(gone, before=as_on_windows)
    assert again.returncode == 0, again.stderr
    assert made.read_bytes() == converted.gguf.read_bytes()
    held = sum(size for name, (size, _) in user.cache.items() if "/snapshots/" in name)
    assert f"The Hub's cache holds {held / 1e6:.1f} MB of {TINY}" in again.stderr


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
    assert again.stderr.splitlines()[:-1] == [f"{user.output / OUTPUT} is up to date."]
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
    assert done.stderr.splitlines()[:-1] == [
        f"The Hub cannot be asked; taking {TINY} as it is in its cache, at {converted.commit[:12]}.",
        f"{converted.gguf} is up to date.",
    ]


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
