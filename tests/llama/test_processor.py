"""A llama.cpp that was compiled for another processor ends with a sentence, before ggml computes anything."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from weblab_local.errors import WeblabError
from weblab_local.llama import backends, processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as llama_cpp/lib, native."""
    (tmp_path / "libggml-cpu.so").touch()
    return tmp_path


def test_the_features_are_those_that_numpy_shows() -> None:
    numpy_config = numpy.show_config("dicts")
    assert numpy_config is not None
    baseline = set(numpy_config["SIMD Extensions"]["baseline"])
    assert baseline & processor._COMPILERS_USE <= processor.features()
    if sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text()
        assert ("AVX2" in processor.features()) is (" avx2 " in flags)


def test_a_note_of_this_machine_lacks_nothing(folder: Path) -> None:
    processor.write_note(folder)
    assert processor.missing(folder) == []
    assert set(json.loads((folder / processor.NOTE).read_text())["features"]) == processor.features()


def test_what_the_processor_lacks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / processor.NOTE).write_text('{"features": ["AVX2", "AVX512F", "SSE42", "of a later version"]}')
    monkeypatch.setattr(processor, "_detected", lambda: {"AVX2": False, "AVX512F": False, "SSE42": True})
    assert processor.missing(folder) == ["AVX2", "AVX512F"]
    monkeypatch.setattr(processor, "library_folder", lambda: folder)
    processor.require.cache_clear()
    with pytest.raises(WeblabError, match=r"with AVX2, AVX512F, which(.|\n)*PORTABLE=1"):
        processor.require()


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"features": 1}', '{"features": [1]}'])
def test_a_note_that_cannot_be_read_says_nothing(folder: Path, note: str) -> None:
    (folder / processor.NOTE).write_text(note)
    assert processor.missing(folder) == []


def test_a_portable_build_needs_no_note(folder: Path) -> None:
    processor.write_note(folder)
    (folder / "libggml-cpu-haswell.so").touch()
    processor.write_note(folder)
    assert not (folder / processor.NOTE).exists()


def test_nothing_of_ggml_is_called_before_the_processor_is_looked_at(tmp_path: Path) -> None:
    """In a process of its own, where the library's folder holds the note of a processor that nobody has."""
    program = f"""
import json, sys
from pathlib import Path
from weblab_local.llama import ggml, processor
Path({str(tmp_path)!r}, processor.NOTE).write_text(json.dumps({{"features": ["AVX2"]}}))
processor.library_folder = lambda: Path({str(tmp_path)!r})
processor._detected = lambda: {{"AVX2": False}}
def called(*arguments):
    sys.exit(f"ggml was called: {{arguments}}")
ggml.function = called
from weblab_local.cli import main
main()
"""
    command = [sys.executable, "-c", program, "generate", "--model", "demo", "--lang", "en", "こんにちは"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("weblab-local: This llama.cpp was compiled for a processor with AVX2")


def test_a_native_build_has_no_variants() -> None:
    backends.start()
    assert backends.cpu_variant() == "" or processor.is_portable(processor.library_folder())
