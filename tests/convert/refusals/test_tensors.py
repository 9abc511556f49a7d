"""Weights that are missing, misshapen, not finite or too large."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import UnsupportedModelError
from convert.quantization.mixtures import MIXTURES
from tests.convert.refusals.damage import (
    FIRST,
    INFINITY,
    LAST,
    NAN,
    NORM,
    Form,
    State,
    a_weight_of,
    assert_refused,
    edit_json,
    edit_weights,
    put,
    small_checkpoint,
)
from tests.support.checkpoints import DTYPES
from tests.support.conversions import converted


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", [FIRST, LAST, NORM, "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"])
def test_a_weight_that_is_nowhere_is_named(tmp_path: Path, name: str, shards: int) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=shards)
    for path in folder.glob("*.safetensors"):
        save_file({key: tensor.clone() for key, tensor in load_file(path).items() if key != name}, path)
    for index in folder.glob("*.index.json"):
        weight_map = json.loads(index.read_text())["weight_map"]
        del weight_map[name]
        edit_json(index, weight_map=weight_map)
    assert_refused(folder, "lacks", name)


@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox.layers.0.attention.query_key_value.lora_A.weight",
        "gpt_neox.layers.2.input_layernorm.weight",
        "gpt_neox.layers.00.input_layernorm.weight",
        "score.weight",
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_that_no_gpt_neox_has_is_named(tmp_path: Path, form: Form, name: str) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    edit_weights(folder, put(name, torch.ones(64)), form)
    assert_refused(folder, name)


@pytest.mark.parametrize(
    ("name", "shape", "found", "meant"),
    [
        (FIRST, (329, 64), "329 x 64", "330 x 64"),
        (LAST, (0, 64), "0 x 64", "330 x 64"),
        (NORM, (63,), "63", "64"),
        (NORM, (64, 1), "64 x 1", "64"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", (64, 128), "64 x 128", "128 x 64"),
        ("gpt_neox.layers.1.attention.query_key_value.weight", (3, 64, 64), "3 x 64 x 64", "192 x 64"),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    tmp_path: Path, form: Form, name: str, shape: tuple[int, ...], found: str, meant: str
) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    edit_weights(folder, put(name, torch.ones(shape, dtype=torch.float16)), form)
    assert_refused(folder, name, f"shape {found}, but", f"means {meant}.")


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("name", [FIRST, LAST, NORM])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_nan_and_infinite_weights_are_named(tmp_path: Path, form: Form, dtype: Any, name: str, value: float) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, dtype=dtype)

    def spoil(state: State) -> None:
        state[name][-1:].view(-1)[-1] = value
        assert state[name].dtype == DTYPES[dtype]

    edit_weights(folder, spoil, form)
    assert_refused(folder, name, "NaN or infinite", quants=("F32", "F16", "Q8_0"))


def values_in(path: Path, name: str) -> Any:
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)


@pytest.mark.parametrize("value", [1e6, -1e6, 65520.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_weight_too_large_for_fp16_is_refused_for_f16_by_name_and_kept_by_f32_and_q8_0(
    tmp_path: Path, dtype: Any, value: float
) -> None:
    folder = small_checkpoint(tmp_path / "model", dtype=dtype)
    edit_weights(folder, a_weight_of(value))
    stored = float(load_file(folder / "model.safetensors")[LAST].view(-1)[7])
    assert_refused(folder, LAST, "too large for F16", quants=("F16",))
    assert_refused(folder, LAST, "too large for F16", quants=("Q8_0", "F16"))
    f32, q8_0 = converted(folder, tmp_path / "output", "F32", "Q8_0")
    assert values_in(f32, "output.weight")[7] == stored
    assert values_in(q8_0, "output.weight")[7] == pytest.approx(stored, rel=1e-3)


def test_a_float32_weight_is_rounded_to_fp16_as_numpy_does_up_to_the_largest_that_has_one(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", dtype="float32")
    edit_weights(folder, a_weight_of(65519.996))
    (f16,) = converted(folder, tmp_path / "output", "F16")
    assert values_in(f16, "output.weight")[7] == np.float16(65519.996) == 65504


def test_a_large_bias_is_no_reason_to_refuse_f16_because_vectors_stay_float32(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", dtype="float32")
    edit_weights(folder, a_weight_of(1e6, NORM))
    (f16,) = converted(folder, tmp_path / "output", "F16")
    assert values_in(f16, "output_norm.bias")[7] == 1e6


@pytest.mark.parametrize("quant", sorted(set(MIXTURES) - {"F32"}))
def test_no_quantization_turns_a_huge_weight_into_infinity(tmp_path: Path, quant: str) -> None:
    """A block's scale is fp16, so every type has an end."""
    folder = small_checkpoint(tmp_path / "model", hidden=256, intermediate=256, layers=1, dtype="float32")
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    edit_weights(folder, a_weight_of(1e9, name))
    assert_refused(folder, name, "too large", quants=(quant,))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.float64, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_of_other_types_are_named(tmp_path: Path, form: Form, dtype: torch.dtype) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    edit_weights(folder, lambda state: put(LAST, state[LAST].to(dtype))(state), form)
    assert_refused(folder, LAST, "stored as", kind=UnsupportedModelError)
