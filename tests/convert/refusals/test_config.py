"""config.json says what cannot be."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from convert.errors import UnsupportedModelError
from tests.convert.refusals.damage import (
    FIRST,
    INFINITY,
    NAN,
    assert_refused,
    edit_json,
    small_checkpoint,
)
from tests.support.conversions import converted


@pytest.mark.parametrize(
    ("size", "other", "culprits"),
    [
        ("hidden_size", 128, [FIRST, "330 x 64", "330 x 128"]),
        ("intermediate_size", 256, ["mlp.dense_h_to_4h.weight", "128 x 64", "256 x 64"]),
        ("vocab_size", 400, [FIRST, "330 x 64", "400 x 64"]),
        ("vocab_size", 300, ["tokenizer.json", "329", "300"]),
        ("num_hidden_layers", 3, ["gpt_neox.layers.2.input_layernorm.weight"]),
        ("num_hidden_layers", 1, ["gpt_neox.layers.1."]),
    ],
)
def test_a_config_json_of_another_size_is_refused(checkpoint: Path, size: str, other: int, culprits: list[str]) -> None:
    edit_json(checkpoint / "config.json", **{size: other})
    assert_refused(checkpoint, *culprits)


@pytest.mark.parametrize("value", ["64", 64.0, -64, 0, None, True, 2**40], ids=repr)
@pytest.mark.parametrize(
    "size",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
def test_a_size_that_is_no_size_is_named(checkpoint: Path, size: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{size: value})
    assert_refused(checkpoint, f"config.json: {size} ", repr(value))


@pytest.mark.parametrize("size", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_size_that_is_absent_is_named(checkpoint: Path, size: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config[size]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert_refused(checkpoint, f"config.json: {size} ")


def test_heads_that_do_not_divide_the_hidden_size_are_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", num_attention_heads=3)
    assert_refused(checkpoint, "config.json", "3 attention heads", "64")


@pytest.mark.parametrize("value", ["0.25", None, NAN, INFINITY, -0.25, 0, [0.25], True], ids=repr)
@pytest.mark.parametrize("key", ["rotary_pct", "rotary_emb_base", "layer_norm_eps"])
def test_a_number_that_is_none_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize("value", ["0.25", None, NAN, -0.25, 0], ids=repr)
@pytest.mark.parametrize("key", ["partial_rotary_factor", "rope_theta"])
def test_a_number_that_is_none_is_named_in_the_new_form_too(tmp_path: Path, key: str, value: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", config_form="new")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    edit_json(folder / "config.json", rope_parameters=rope | {key: value})
    assert_refused(folder, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize(
    ("fraction", "dimensions"), [(3 / 32, 3), (1 / 32, 1), (1 / 64, 0), (33 / 32, 33), (34 / 32, 34)]
)
def test_a_rotary_fraction_of_no_even_number_of_dimensions_is_refused(
    checkpoint: Path, fraction: float, dimensions: int
) -> None:
    edit_json(checkpoint / "config.json", rotary_pct=fraction)
    assert_refused(checkpoint, str(fraction), f"{dimensions} of 32", kind=UnsupportedModelError)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "llama3", 7, ["linear"]], ids=repr)
@pytest.mark.parametrize("form", ["old", "new"])
def test_rope_scaling_that_is_not_linear_is_refused(tmp_path: Path, form: Any, kind: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", config_form=form)
    if form == "old":
        edit_json(folder / "config.json", rope_scaling={"type": kind, "factor": 4.0})
    else:
        rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
        edit_json(folder / "config.json", rope_parameters=rope | {"rope_type": kind, "factor": 4.0})
    assert_refused(folder, "rope scaling", repr(kind), kind=UnsupportedModelError)


@pytest.mark.parametrize("form", ["old", "new"])
def test_linear_rope_scaling_is_accepted(tmp_path: Path, form: Any) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    folder = small_checkpoint(tmp_path / "model", config_form=form, rope_scaling=scaling)
    (path,) = converted(folder, tmp_path / "output", "Q8_0")
    fields = gguf.GGUFReader(path).fields
    assert fields["gptneox.rope.scaling.type"].contents() == "linear"
    assert fields["gptneox.rope.scaling.factor"].contents() == 4.0


@pytest.mark.parametrize("factor", [{}, {"factor": None}, {"factor": "4"}, {"factor": 0}, {"factor": -4.0}], ids=str)
def test_linear_rope_scaling_without_a_positive_factor_is_refused(checkpoint: Path, factor: dict[str, Any]) -> None:
    edit_json(checkpoint / "config.json", rope_scaling={"type": "linear"} | factor)
    assert_refused(checkpoint, "config.json: factor ")


@pytest.mark.parametrize("value", [[], [4.0], "linear", 4.0, False], ids=repr)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_settings_that_are_no_object_are_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize("activation", ["relu", "silu", "quick_gelu", "", None, ["gelu"]], ids=repr)
def test_an_activation_that_is_not_gelu_is_named(checkpoint: Path, activation: Any) -> None:
    edit_json(checkpoint / "config.json", hidden_act=activation)
    assert_refused(checkpoint, "hidden_act", str(activation), kind=UnsupportedModelError)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "LlamaForCausalLM"),
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, "GPTNeoXForSequenceClassification"),
        ({"architectures": None, "model_type": "llama"}, "llama"),
        ({"model_type": "gpt_neox_japanese"}, "gpt_neox_japanese"),
        ({"model_type": None}, "None"),
        ({"architectures": [7]}, "7"),
    ],
    ids=str,
)
def test_another_architecture_is_named(checkpoint: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(checkpoint / "config.json", **changes)
    assert_refused(checkpoint, f"is a {named}, not a GPTNeoXForCausalLM", kind=UnsupportedModelError)


@pytest.mark.parametrize("value", ["false", 0, None], ids=repr)
@pytest.mark.parametrize("key", ["use_parallel_residual", "tie_word_embeddings"])
def test_a_switch_that_is_neither_on_nor_off_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize("value", [-1, 330, 2**33, "0", [], [400], [0, 400], 0.0, True], ids=repr)
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_a_token_id_that_the_vocabulary_lacks_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", "330", repr(value))
