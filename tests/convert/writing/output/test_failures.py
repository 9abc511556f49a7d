"""Whatever fails on the way, nothing half-written stays and nothing older is harmed."""

import errno
import mmap
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from convert.errors import CheckpointError, ConversionError, OutputError
from convert.quantization.mixtures import mixture
from convert.source.checkpoint import open_checkpoint
from convert.source.source import local_source, model_card
from convert.writing import output
from convert.writing.pipeline import convert
from convert.writing.plan import make_plan
from tests.convert.writing.output.support import (
    Before,
    Disk,
    failing_read,
    first_shard,
    identity,
    in_pages,
    in_the_middle_of,
    manifest_of,
    sha256,
    with_or_without_older,
)
from tests.support import windows
from tests.support.conversions import converted, files_in, run_convert
from tests.support.systems import on_linux, on_posix


@on_posix
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


@on_posix
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


@on_posix
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
    monkeypatch.setattr("convert.source.tensor_files.StoredTensor.to_float32", failing_read)

    with pytest.raises(OutputError, match=rf"\[Errno {errno.EIO}\].*\nNothing was left behind. Check the disk"):
        converted(checkpoint, folder, "Q8_0", force=True)

    assert before.is_unchanged()


def test_a_shard_that_cannot_be_hashed_leaves_nothing(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.source.reading.hashlib.sha256", lambda: SimpleNamespace(update=failing_read))

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
        convert(opened, plan, lambda _: {}, lambda _: nullcontext(change))

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


@on_linux
def test_a_folder_where_nothing_can_be_written_is_refused(checkpoint: Path) -> None:
    done = run_convert(checkpoint, "--output", "/sys")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("convert: Cannot write to /sys: ")
    assert done.stderr.endswith("\nChoose another --output.\n")


@on_linux
def test_an_older_file_that_is_in_use_survives_and_the_new_one_is_kept_beside_it(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = converted(checkpoint, folder, "Q8_0")
    before = identity(path), manifest_of(path)
    monkeypatch.setattr(os, "replace", windows.refusing(os.replace, position=1))
    said = rf"{path} cannot be replaced: .*\nThe new file is whole and kept as {folder}/model-Q8_0\.new\.gguf\.\n"

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as chat:
        with pytest.raises(OutputError, match=rf"{said}Finished: {folder}/model-F16\.gguf\.\nClose the programs"):
            converted(checkpoint, folder, "Q8_0", "F16", force=True, chat_template="weblab")
        assert chat[:4] == b"GGUF"
        assert (identity(path), manifest_of(path)) == before
        new = folder / "model-Q8_0.new.gguf"
        assert manifest_of(new)["output"] == {"name": new.name, "size": new.stat().st_size, "sha256": sha256(new)}
        with pytest.raises(OutputError, match=r"kept as .*/model-Q8_0\.new2\.gguf\.\n"):
            converted(checkpoint, folder, "Q8_0", force=True, chat_template="weblab")
        assert sha256(folder / "model-Q8_0.new2.gguf") == sha256(new)

    assert files_in(folder) == [
        *("model-F16.gguf", "model-F16.json", "model-Q8_0.gguf", "model-Q8_0.json"),
        *("model-Q8_0.new.gguf", "model-Q8_0.new.json", "model-Q8_0.new2.gguf", "model-Q8_0.new2.json"),
    ]
    converted(checkpoint, folder, "Q8_0", force=True, chat_template="weblab")
    assert sha256(path) == sha256(new)


def test_when_the_second_of_two_results_has_no_place_the_first_is_named(checkpoint: Path, folder: Path) -> None:
    (folder / "model-F16.gguf").mkdir()

    with pytest.raises(OutputError) as raised:
        converted(checkpoint, folder, "Q8_0", "F16", force=True)

    assert "Nothing was left" not in str(raised.value)
    assert f"{folder}/model-F16.gguf cannot be written: [Errno {errno.EISDIR}]" in str(raised.value)
    assert f"Finished: {folder}/model-Q8_0.gguf." in str(raised.value)
    assert files_in(folder) == ["model-F16.gguf", "model-Q8_0.gguf", "model-Q8_0.json"]
    assert manifest_of(folder / "model-Q8_0.gguf")["output"]["sha256"] == sha256(folder / "model-Q8_0.gguf")


def test_a_result_that_has_its_name_but_no_manifest_is_named(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "publish_manifest", failing_read)

    with pytest.raises(OutputError, match=rf"{folder}/model-Q8_0\.gguf is whole, but has no manifest: \[Errno"):
        converted(checkpoint, folder, "Q8_0")

    assert files_in(folder) == ["model-Q8_0.gguf"]
