"""Sources, options and outputs that cannot be, also through the command line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convert.errors import CheckpointError, ConversionError, OutputError
from convert.quantization.mixtures import MIXTURES
from tests.convert.refusals.damage import (
    FILES,
    LAST,
    NAN,
    Form,
    Malicious,
    a_weight_of,
    assert_refused,
    edit_weights,
    refusal,
    small_checkpoint,
)
from tests.support.conversions import converted, files_in, run_convert
from weblab_local.models.store import demo_model


@pytest.mark.parametrize("source", ["/nowhere/model", "nowhere/at/all", "./nowhere", "nowhere", "~/nowhere-at-all"])
def test_a_path_that_does_not_exist_and_is_no_hub_id_is_named(tmp_path: Path, source: str) -> None:
    error = refusal(source, tmp_path / "output")
    assert source.removeprefix("./").removeprefix("~/") in error.message
    assert "There is no" in error.message
    assert "owner/name" in error.remedy


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", str(tmp_path / "empty"), "no config.json")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_folder_without_weights_is_named(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    (folder / FILES[form]).unlink()
    assert_refused(folder, str(folder), "no weights")


def test_a_file_is_no_source(checkpoint: Path, tmp_path: Path) -> None:
    error = refusal(checkpoint / "model.safetensors", tmp_path / "output")
    assert f"{checkpoint / 'model.safetensors'} is a file" in error.message
    assert error.remedy


def test_a_gguf_is_no_source_and_the_remedy_says_how_to_run_it(tmp_path: Path) -> None:
    error = refusal(demo_model(), tmp_path / "output")
    assert f"{demo_model()} is a GGUF file already" in error.message
    assert "--model" in error.remedy


def test_a_revision_is_refused_for_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--revision"):
        converted(checkpoint, tmp_path / "output", "Q8_0", revision="main")
    assert files_in(tmp_path / "output") == []


@pytest.mark.parametrize("quants", [("Q9_X",), ("Q8_0", "Q9_X"), ("Q4_K_M Q9_X",)])
def test_an_unknown_quantization_is_named_with_those_there_are(checkpoint: Path, quants: tuple[str, ...]) -> None:
    error = refusal(checkpoint, checkpoint.parent / "output", *quants)
    assert "Q9_X" in error.message
    assert all(name in error.remedy for name in MIXTURES)


def test_no_quantization_at_all_is_refused_with_those_there_are(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="No quantization") as caught:
        converted(checkpoint, tmp_path / "output")
    assert all(name in caught.value.remedy for name in MIXTURES)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("below", ["", "output", "a/b"])
def test_an_output_folder_that_cannot_be_one_is_named(checkpoint: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    error = refusal(checkpoint, tmp_path / "file" / below)
    assert type(error) is OutputError
    assert str(tmp_path / "file" / below) in error.message
    assert "--output" in error.remedy
    assert (tmp_path / "file").read_text() == "mine"


def test_a_refused_conversion_leaves_the_earlier_result_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    (earlier,) = converted(checkpoint, tmp_path / "output", "Q8_0")
    content = earlier.read_bytes()
    edit_weights(checkpoint, a_weight_of(NAN))
    with pytest.raises(CheckpointError, match=LAST):
        converted(checkpoint, tmp_path / "output", "Q8_0", force=True)
    assert earlier.read_bytes() == content
    assert files_in(tmp_path / "output") == ["model-Q8_0.gguf", "model-Q8_0.json"]


# --- the command line -------------------------------------------------------------------------------------------------


def remove_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.bin"))[1].unlink()


def put_code_into_a_shard(folder: Path) -> None:
    path = sorted(folder.glob("*.bin"))[0]
    torch.save(torch.load(path) | {"more": Malicious(os.mkdir, str(folder / "marker"))}, path)


@pytest.mark.parametrize(
    ("damage", "quant", "said"),
    [
        (remove_a_shard, "Q8_0", "is missing in"),
        (put_code_into_a_shard, "Q8_0", "wants to run code when it is read"),
        (lambda _: None, "Q8_0,Q9_X", "There is no quantization called 'Q9_X'"),
        (lambda _: None, "", "No quantization was given"),
    ],
    ids=["missing shard", "code in a shard", "unknown quantization", "no quantization"],
)
def test_the_command_ends_with_1_and_says_why_on_stderr_alone(
    tmp_path: Path, damage: Callable[[Path], None], quant: str, said: str
) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin", shards=3)
    damage(folder)
    done = run_convert(folder, "--quant", quant, "--output", tmp_path / "output")
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.partition("convert: ")[2].splitlines()
    assert said in last[0]
    assert len(last) == 2, "the cause and the remedy"
    assert "Traceback" not in done.stderr
    assert not (folder / "marker").exists()
    assert not (tmp_path / "output").exists() or files_in(tmp_path / "output") == []
