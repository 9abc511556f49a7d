"""The file is finished or absent, whatever happens; what is finished is described, recognised and left alone."""

import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert import output
from convert.checkpoint import Checkpoint, open_checkpoint
from convert.errors import CheckpointError, ConversionError, OutputError
from convert.mixtures import mixture
from convert.pipeline import convert
from convert.plan import make_plan
from convert.source import local_source, model_card
from tests.checkpoints import random_checkpoint
from tests.conversions import converted, files_in, run_convert, start_convert

COMMIT = "0123456789abcdef0123456789abcdef01234567"

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="Linux only")
with_or_without_older = pytest.mark.parametrize("older", [False, True], ids=["first", "an older file is there"])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes a while to convert: 16 MB, which IQ4_XS is slow with."""
    return random_checkpoint(
        tmp_path_factory.mktemp("large") / "large",
        layers=1,
        hidden=512,
        vocab_size=14_000,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_checkpoint(tmp_path_factory.mktemp("small") / "model", hidden=128, shards=3)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A checkpoint in several shards that the test may change."""
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder for the results, empty."""
    path = tmp_path / "results"
    path.mkdir()
    return path


class Before:
    """A folder for results before a conversion that fails: empty, or with a finished file and its manifest."""

    def __init__(self, folder: Path, name: str, older: bool) -> None:
        self._folder = folder
        self._files = {f"{name}.gguf": b"an older file", f"{name}.json": b"{}"} if older else {}
        for file, content in self._files.items():
            (folder / file).write_bytes(content)

    def is_unchanged(self) -> bool:
        return {name: (self._folder / name).read_bytes() for name in files_in(self._folder)} == self._files


Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a file system of so many bytes and gives its folder."""
    with ExitStack() as mounted:

        def make(n_bytes: int) -> Path:
            path = tmp_path / "disk"
            path.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(path)]
            if platform.system() != "Linux" or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
                pytest.skip("needs Linux and the right to mount a tmpfs")
            mounted.callback(subprocess.run, ["umount", str(path)], check=True)
            return path

        yield make


def first_shard(checkpoint: Path) -> Path:
    return min(checkpoint.glob("*.safetensors"))


def in_pages(n_bytes: int) -> int:
    """The room that a file of so many bytes takes on a tmpfs."""
    page = os.sysconf("SC_PAGE_SIZE")
    return -(-n_bytes // page) * page


def identity(path: Path) -> tuple[int, int, int]:
    """Another one when the file was written to or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest_of(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_bytes().decode("utf-8"))


def failing_read(*_: object) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def no_reading(*_: object) -> NoReturn:
    raise AssertionError("The weights were read again.")


# Never half a file


def in_the_middle_of(large: Path, folder: Path) -> "subprocess.Popen[str]":
    """`python -m convert`, which has written some of its output."""
    process = start_convert(large, "--output", folder, "--quant", "IQ4_XS", "--threads", "1", "--force")
    partial = folder / "large-IQ4_XS.gguf.partial"
    for _ in range(6000):
        try:
            process.wait(timeout=0.01)
            break
        except subprocess.TimeoutExpired:
            if partial.exists() and partial.stat().st_size > 1_000_000:  # of 11 MB; a third is the header
                return process
    process.kill()
    pytest.fail(f"There was no moment to interrupt the conversion: {process.communicate()[1]}")


@with_or_without_older
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(large: Path, folder: Path, signum: signal.Signals, older: bool) -> None:
    before = Before(folder, "large-IQ4_XS", older)

    with in_the_middle_of(large, folder) as process:
        process.send_signal(signum)
        stdout, stderr = process.communicate()

    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("convert: interrupted; ")
    assert "Traceback" not in stderr
    assert before.is_unchanged()


def test_after_a_kill_only_a_partial_file_is_there_and_the_next_conversion_clears_it_away(
    large: Path, folder: Path
) -> None:
    with in_the_middle_of(large, folder) as process:
        process.kill()
        process.communicate()

    assert process.returncode == -signal.SIGKILL
    assert files_in(folder) == ["large-IQ4_XS.gguf.partial"]

    again = run_convert(large, "--output", folder, "--quant", "IQ4_XS")

    assert again.returncode == 0, again.stderr
    assert files_in(folder) == ["large-IQ4_XS.gguf", "large-IQ4_XS.json"]


@with_or_without_older
def test_a_failing_write_leaves_nothing(checkpoint: Path, folder: Path, older: bool) -> None:
    before = Before(folder, "model-F16", older)

    done = run_convert(checkpoint, "--output", folder, "--quant", "F16", "--force", largest_file=1 << 19)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.endswith(
        f"\nconvert: Reading or writing failed: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}.\n"
        "Nothing was left behind. Check the disk's free space and health, then run the same command again.\n"
    )
    assert "Traceback" not in done.stderr
    assert before.is_unchanged()


@with_or_without_older
def test_a_disk_that_becomes_full_leaves_nothing(
    checkpoint: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    full = disk(1 << 20)
    before = Before(full, "model-F32", older)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))

    with pytest.raises(OutputError, match=rf"\[Errno {errno.ENOSPC}\].*\nNothing was left behind. Check the disk"):
        converted(checkpoint, full, "F32", "Q8_0", force=True)

    assert before.is_unchanged()


def test_a_disk_that_becomes_full_at_the_manifest_leaves_nothing(checkpoint: Path, folder: Path, disk: Disk) -> None:
    (path,) = converted(checkpoint, folder, "Q8_0")
    full = disk(in_pages(path.stat().st_size))

    with pytest.raises(OutputError, match=rf"\[Errno {errno.ENOSPC}\].*\nNothing was left behind"):
        converted(checkpoint, full, "Q8_0")

    assert files_in(full) == []


def test_what_a_killed_conversion_left_takes_no_room_from_the_next(checkpoint: Path, folder: Path, disk: Disk) -> None:
    (path,) = converted(checkpoint, folder, "Q8_0")
    small = disk(in_pages(path.stat().st_size) + in_pages(1))
    (small / "model-Q8_0.gguf.partial").write_bytes(path.read_bytes()[:-1])
    (small / "model-Q8_0.json.partial").write_text("{")

    (again,) = converted(checkpoint, small, "Q8_0")

    assert again.read_bytes() == path.read_bytes()
    assert files_in(small) == ["model-Q8_0.gguf", "model-Q8_0.json"]


@with_or_without_older
def test_weights_that_cannot_be_read_leave_nothing(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    before = Before(folder, "model-Q8_0", older)
    monkeypatch.setattr("convert.checkpoint.StoredTensor.to_float32", failing_read)

    with pytest.raises(OutputError, match=rf"\[Errno {errno.EIO}\].*\nNothing was left behind. Check the disk"):
        converted(checkpoint, folder, "Q8_0", force=True)

    assert before.is_unchanged()


def test_a_shard_that_cannot_be_hashed_leaves_nothing(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = output.sha256
    shard = first_shard(checkpoint)
    monkeypatch.setattr(output, "sha256", lambda p, *more: failing_read() if p == shard else really(p, *more))

    with pytest.raises(OutputError, match=rf"\[Errno {errno.EIO}\].*\nNothing was left behind. Check the disk"):
        converted(checkpoint, folder, "Q8_0")

    assert files_in(folder) == []


@on_linux
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md"])
def test_a_small_file_that_cannot_be_read_is_an_error_with_a_remedy(checkpoint: Path, folder: Path, name: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to("/proc/self/mem")  # reading its beginning gives EIO

    with pytest.raises(ConversionError, match=rf"{os.strerror(errno.EIO)}\.\n\w+"):
        converted(checkpoint, folder, "Q8_0")

    assert files_in(folder) == []


@with_or_without_older
def test_weights_that_a_type_cannot_hold_leave_nothing(checkpoint: Path, folder: Path, older: bool) -> None:
    before = Before(folder, "model-F16", older)
    shard = first_shard(checkpoint)
    save_file({name: tensor.float() * 1e7 for name, tensor in load_file(shard).items()}, shard)

    with pytest.raises(CheckpointError, match=r"too large for F16.*\nConvert this model with --quant F32"):
        converted(checkpoint, folder, "Q8_0", "F16", force=True)

    assert before.is_unchanged()


@pytest.mark.parametrize("pattern", ["*.safetensors", "config.json"])
def test_a_checkpoint_that_changes_during_its_conversion_leaves_nothing(
    checkpoint: Path, folder: Path, pattern: str
) -> None:
    (changing, *_) = checkpoint.glob(pattern)
    opened = open_checkpoint(checkpoint)
    plan = make_plan(opened, model_card(local_source(checkpoint)), [mixture("Q8_0")], folder)

    def change(done: int, total: int) -> None:
        if done == total:
            changing.write_bytes(changing.read_bytes() + b" ")

    with pytest.raises(CheckpointError, match=r"changed while it was being converted\.\nWait until"):
        convert(opened, plan, lambda _: {}, change)

    assert files_in(folder) == []


def test_a_manifest_never_describes_another_file(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = converted(checkpoint, folder, "Q8_0")
    monkeypatch.setattr(output, "publish_manifest", failing_read)

    with pytest.raises(OutputError):
        converted(checkpoint, folder, "Q8_0", force=True, chat_template="weblab")

    assert files_in(folder) == [path.name]


def test_a_folder_with_the_name_of_the_result_is_left_alone(checkpoint: Path, folder: Path) -> None:
    (folder / "model-Q8_0.gguf").mkdir()

    with pytest.raises(OutputError, match=rf"\[Errno {errno.EISDIR}\]"):
        converted(checkpoint, folder, "Q8_0", force=True)

    assert files_in(folder) == ["model-Q8_0.gguf"]


# Refused before the first byte


@on_linux
def test_a_folder_where_nothing_can_be_written_is_refused(checkpoint: Path) -> None:
    done = run_convert(checkpoint, "--output", "/sys")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("convert: Cannot write to /sys: ")
    assert done.stderr.endswith("\nChoose another --output.\n")


def test_a_file_in_place_of_the_folder_is_refused(checkpoint: Path, folder: Path) -> None:
    (folder / "file").touch()

    with pytest.raises(OutputError, match=r"Cannot make the folder .*\nChoose another --output\."):
        converted(checkpoint, folder / "file", "Q8_0")


@pytest.mark.parametrize("quant", ["", " , "])
def test_no_quantization_at_all_is_refused(checkpoint: Path, folder: Path, quant: str) -> None:
    done = run_convert(checkpoint, "--output", folder, "--quant", quant)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("convert: No quantization was given.\nChoose from: F32, F16, Q8_0")


def test_a_second_conversion_to_the_same_folder_is_refused(checkpoint: Path, folder: Path) -> None:
    with output.exclusive(folder):
        done = run_convert(checkpoint, "--output", folder, "--quant", "Q8_0")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"convert: Another conversion is writing to {folder}.\nWait for it to end, or choose another --output.\n"
    )
    assert files_in(folder) == []
    assert converted(checkpoint, folder, "Q8_0") == [folder / "model-Q8_0.gguf"]


def test_a_full_disk_is_refused_with_numbers(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (q8_0,) = converted(checkpoint, folder, "Q8_0")
    size = q8_0.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 2000))
    numbers = f"{size / 1000:.0f} kB needed, {size / 1000 - 2:.0f} kB free"

    with pytest.raises(OutputError, match=rf"Not enough disk space in .*: {numbers}\.\nFree some space"):
        converted(checkpoint, folder / "another", "Q8_0")

    assert files_in(folder / "another") == []


def test_too_little_memory_is_refused_with_numbers(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=123 * 10**6))

    with pytest.raises(OutputError, match=r"Not enough memory: about [67]\d\d\.\d MB needed, 123\.0 MB available\."):
        converted(checkpoint, folder, "Q8_0", threads=2)

    assert files_in(folder) == []


# What is there already


def test_a_file_of_unknown_origin_is_replaced_only_by_force(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    (expected,) = converted(checkpoint, tmp_path / "elsewhere", "Q8_0")
    there = folder / "model-Q8_0.gguf"
    there.write_bytes(b"mine")

    with pytest.raises(OutputError, match=r"exists already, .*\nGive --force to replace it"):
        converted(checkpoint, folder, "Q8_0")

    assert there.read_bytes() == b"mine"
    assert files_in(folder) == ["model-Q8_0.gguf"]
    assert converted(checkpoint, folder, "Q8_0", force=True) == [there]
    assert there.read_bytes() == expected.read_bytes()


def test_what_is_up_to_date_is_left_alone_and_no_weight_is_read(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = converted(checkpoint, folder, "Q8_0", "F16")
    files = {name: identity(folder / name) for name in files_in(folder)}
    os.utime(checkpoint / "config.json")  # small files are known by their content
    monkeypatch.setattr(Checkpoint, "open_shard", no_reading)
    monkeypatch.setattr("convert.pipeline.quantize_rows", no_reading)
    capsys.readouterr()

    assert converted(checkpoint, folder, "Q8_0", "F16") == paths

    assert capsys.readouterr().err == "".join(f"{path} is up to date.\n" for path in paths)
    assert {name: identity(folder / name) for name in files_in(folder)} == files


def test_force_makes_anew_what_is_up_to_date(checkpoint: Path, folder: Path) -> None:
    (path,) = converted(checkpoint, folder, "Q8_0")
    before = identity(path)

    converted(checkpoint, folder, "Q8_0", force=True)

    assert identity(path) != before


def test_only_the_quantization_that_is_missing_is_made(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (q8_0,) = converted(checkpoint, folder, "Q8_0")
    before = identity(q8_0)
    capsys.readouterr()

    paths = converted(checkpoint, folder, "Q4_K_M", "Q8_0")

    assert paths == [folder / "model-Q4_K_M.gguf", q8_0]
    assert identity(q8_0) == before
    said = capsys.readouterr().err
    assert f"{q8_0} is up to date.\n" in said
    assert "  Q4_K_M: " in said
    assert "  Q8_0: " not in said


def grow_the_shard(checkpoint: Path, _: Path) -> None:
    shard = first_shard(checkpoint)
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    save_file(load_file(shard), shard, {"format": "pt", "note": "larger"})
    os.utime(shard, ns=times)


def append(name: str, text: str) -> Callable[[Path, Path], None]:
    def change(checkpoint: Path, _: Path) -> None:
        with (checkpoint / name).open("a") as file:
            file.write(text)

    return change


def write_manifest(content: bytes) -> Callable[[Path, Path], None]:
    return lambda _, path: void(path.with_suffix(".json").write_bytes(content))


def edit_manifest(**fields: object) -> Callable[[Path, Path], None]:
    return lambda _, path: void(path.with_suffix(".json").write_text(json.dumps(manifest_of(path) | fields)))


def void(_: object) -> None:
    """Of a lambda that is called for its effect."""


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda checkpoint, _: os.utime(first_shard(checkpoint)), id="a shard has another time"),
        pytest.param(grow_the_shard, id="a shard has another size"),
        pytest.param(append("config.json", "\n"), id="config.json has changed"),
        pytest.param(append("tokenizer.json", "\n"), id="tokenizer.json has changed"),
        pytest.param(append("tokenizer_config.json", "\n"), id="tokenizer_config.json has changed"),
        pytest.param(append("chat_template.jinja", "{{ messages }}"), id="there is a chat template now"),
        pytest.param(append("README.md", "\n"), id="the model card has changed"),
        pytest.param(lambda checkpoint, _: (checkpoint / "README.md").unlink(), id="the model card is gone"),
        pytest.param(lambda _, path: os.truncate(path, path.stat().st_size - 1), id="the file is truncated"),
        pytest.param(lambda _, path: path.with_suffix(".json").unlink(), id="the manifest is missing"),
        pytest.param(write_manifest(b'{"format": 1,'), id="the manifest is truncated"),
        pytest.param(write_manifest(b"\xff\xfe"), id="the manifest is no text"),
        pytest.param(write_manifest(b"[]"), id="the manifest is a list"),
        pytest.param(write_manifest(b'{"format": 1}'), id="the manifest is empty"),
        pytest.param(edit_manifest(source=None), id="the manifest has no source"),
        pytest.param(edit_manifest(output=[1]), id="the manifest has no output"),
        pytest.param(edit_manifest(format=0), id="the manifest is of an older version"),
    ],
)
def test_what_is_no_longer_up_to_date_is_replaced_only_by_force(
    checkpoint: Path, folder: Path, change: Callable[[Path, Path], None]
) -> None:
    (path,) = converted(checkpoint, folder, "Q8_0")
    change(checkpoint, path)
    before = identity(path)

    with pytest.raises(OutputError, match="exists already, and was not made from this checkpoint as it is now"):
        converted(checkpoint, folder, "Q8_0")

    assert identity(path) == before
    converted(checkpoint, folder, "Q8_0", force=True)
    replaced = identity(path)
    assert replaced != before
    converted(checkpoint, folder, "Q8_0")
    assert identity(path) == replaced


@pytest.mark.parametrize("choice", ["weblab", "none"])
def test_with_another_chat_template_it_is_no_longer_up_to_date(
    checkpoint: Path, folder: Path, choice: Literal["weblab", "none"]
) -> None:
    converted(checkpoint, folder, "Q8_0")

    with pytest.raises(OutputError, match="exists already"):
        converted(checkpoint, folder, "Q8_0", chat_template=choice)


# The manifest


def test_the_manifest_lets_anybody_check_the_file_and_its_source(checkpoint: Path, folder: Path) -> None:
    (path,) = converted(checkpoint, folder, "Q4_K_M")

    manifest = manifest_of(path)

    assert manifest["output"] == {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
    assert manifest["recipe"] == {"mixture": "Q4_K_M", "chat_template": "auto"}
    shards = list(checkpoint.glob("*.safetensors"))
    assert len(shards) > 1
    assert {shard["name"]: (shard["sha256"], shard["size"]) for shard in manifest["source"]["shards"]} == {
        shard.name: (sha256(shard), shard.stat().st_size) for shard in shards
    }
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "README.md")
    assert manifest["source"]["files"] == {name: sha256(checkpoint / name) for name in names}
    assert (manifest["source"]["repository"], manifest["source"]["revision"]) == ("", "")


def test_the_manifest_names_the_tools_and_their_versions(checkpoint: Path, folder: Path) -> None:
    tools = manifest_of(converted(checkpoint, folder, "Q8_0")[0])["tools"]

    assert tools["python"] == platform.python_version()
    assert tools["llama-cpp-python"] == version("llama-cpp-python")
    assert tools["gguf"] == version("gguf")
    assert tools["numpy"] == version("numpy")
    assert tools["torch"] == torch.__version__


def test_the_manifest_names_the_commit_of_a_snapshot_in_the_cache_of_the_hub(
    original: Path, folder: Path, tmp_path: Path
) -> None:
    snapshot = shutil.copytree(original, tmp_path / "hub" / "models--an-owner--a-model" / "snapshots" / COMMIT)

    (path,) = converted(snapshot, folder, "Q8_0")

    source = manifest_of(path)["source"]
    assert path.name == "a-model-Q8_0.gguf"
    assert (source["repository"], source["revision"]) == ("an-owner/a-model", COMMIT)


def test_japanese_names_stand_in_the_manifest_as_they_are(original: Path, folder: Path, tmp_path: Path) -> None:
    japanese = shutil.copytree(original, tmp_path / "言語モデル")

    (path,) = converted(japanese, folder, "Q8_0")

    assert path.name == "言語モデル-Q8_0.gguf"
    assert manifest_of(path)["output"]["name"] == path.name
    assert "言語モデル" in path.with_suffix(".json").read_text(encoding="utf-8")
