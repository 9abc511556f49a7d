"""What is there already is recognised, kept, or replaced by force only."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from convert.errors import OutputError
from convert.source.checkpoint import Checkpoint
from tests.convert.writing.output.support import (
    append,
    edit_manifest,
    first_shard,
    grow_the_shard,
    identity,
    no_reading,
    write_manifest,
)
from tests.support.conversions import converted, files_in


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
    monkeypatch.setattr("convert.writing.pipeline.quantize_rows", no_reading)
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
