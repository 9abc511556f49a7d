"""Folders, disks and machines where a conversion is refused before its first byte."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from convert.errors import OutputError
from convert.writing import output
from tests.support.conversions import converted, files_in, run_convert


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
