"""A shard or its index is damaged: the culprit is named and nothing is written."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import CheckpointError, UnsupportedModelError
from convert.model.gpt_neox import hyperparameters, map_tensors
from convert.source.checkpoint import open_checkpoint
from tests.convert.refusals.damage import (
    FILES,
    INDEXES,
    LAST,
    NORM,
    Form,
    assert_refused,
    edit_json,
    read_state,
    small_checkpoint,
)
from tests.support.conversions import converted, files_in


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_checkpoint_that_is_damaged_below_can_be_converted_as_it_is(
    tmp_path: Path, form: Form, shards: int
) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=shards)
    converted(folder, tmp_path / "output", "Q8_0")
    assert files_in(tmp_path / "output") == ["model-Q8_0.gguf", "model-Q8_0.json"]


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tmp_path: Path, form: Form, number: int) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    shard = sorted(folder.glob(f"*.{form}"))[number]
    shard.unlink()
    assert_refused(folder, shard.name, "missing", str(folder))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 100, 0.1, 0.5, 0.9, -30, -1])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_shard_that_was_cut_off_is_named(tmp_path: Path, form: Form, shards: int, length: float) -> None:
    """`length`: bytes that are left, or as a fraction of all, or below 0 those that are lost."""
    folder = small_checkpoint(tmp_path / "model", form=form, shards=shards)
    shard = sorted(folder.glob(f"*.{form}"))[-1]
    size = shard.stat().st_size
    os.truncate(shard, int(size * length) if isinstance(length, float) else length % size if length < 0 else length)
    assert_refused(folder, shard.name, "damaged")


def test_a_shard_with_more_bytes_than_its_header_lists_is_named(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert_refused(checkpoint, "model.safetensors", "damaged")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_damaged_byte_in_the_list_of_tensors_brings_no_other_exception(tmp_path: Path, form: Form) -> None:
    """An unpickler that meets damage may raise anything: KeyError, struct.error, UnicodeDecodeError."""
    folder = small_checkpoint(tmp_path / "model", form=form, layers=1)
    path = folder / FILES[form]
    sound = path.read_bytes()
    if form == "safetensors":
        start, stop = 0, 8 + int.from_bytes(sound[:8], "little")
    else:
        start, stop = sound.index(b"data.pkl"), sound.index(b".format_version")
    chance = random.Random(0)
    refused = 0
    for _ in range(100):
        position = chance.randrange(start, stop)
        new = folder / "new"  # never over a file that may be mapped
        new.write_bytes(sound[:position] + chance.randbytes(1) + sound[position + 1 :])
        new.replace(path)
        try:
            with open_checkpoint(folder).open_shard(path.name) as stored:
                map_tensors(hyperparameters(open_checkpoint(folder).config), stored)
        except (CheckpointError, UnsupportedModelError):
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_that_the_index_promises_and_the_shard_lacks_is_named(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    shard = folder / json.loads((folder / INDEXES[form]).read_text())["weight_map"][LAST]
    state = {name: tensor.clone() for name, tensor in read_state(shard).items() if name != LAST}
    if form == "safetensors":
        save_file(state, shard, {"format": "pt"})
    else:
        torch.save(state, shard)
    assert_refused(folder, f"{shard.name} holds {LAST}", "index")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_that_lies_in_another_shard_than_the_index_says_is_named(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    index = folder / INDEXES[form]
    weight_map = json.loads(index.read_text())["weight_map"]
    other = next(shard for shard in weight_map.values() if shard != weight_map[LAST])
    edit_json(index, weight_map=weight_map | {LAST: other})
    assert_refused(folder, LAST, "index")


def test_a_tensor_that_the_index_does_not_list_is_named(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    weight_map = json.loads((folder / INDEXES["safetensors"]).read_text())["weight_map"]
    path = folder / weight_map[NORM]
    save_file({name: tensor.clone() for name, tensor in load_file(path).items()} | {"more": torch.ones(2)}, path)
    assert_refused(folder, path.name, "more", "index")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "folder/x.safetensors", "..", ".", "", 1, None, ["x.safetensors"]],
    ids=repr,
)
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, shard: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    (folder / "folder").mkdir()
    for path in (tmp_path / "x.safetensors", folder / "folder" / "x.safetensors"):
        save_file({LAST: torch.ones(330, 64)}, path)
    index = folder / INDEXES["safetensors"]
    edit_json(index, weight_map=json.loads(index.read_text())["weight_map"] | {LAST: shard})
    assert_refused(folder, index.name, "outside its folder", repr(shard))


@pytest.mark.parametrize("weight_map", [None, {}, [], ["x"], "model.safetensors"], ids=repr)
def test_an_index_without_a_weight_map_is_named(tmp_path: Path, weight_map: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    edit_json(folder / INDEXES["safetensors"], weight_map=weight_map)
    assert_refused(folder, INDEXES["safetensors"], "weight_map")
