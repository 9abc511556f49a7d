"""What cannot be merged exactly, or does not fit the base, is refused by its name before a weight is read."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import CheckpointError, ConversionError, UnsupportedModelError
from tests.convert.refusals.damage import Malicious, edit_json
from tests.support.adapters import base_model, random_adapter
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted, files_in
from weblab_local.errors import WeblabError

WEIGHTS = "adapter_model.safetensors"
Edit = Callable[[dict[str, torch.Tensor]], Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("base") / "base", hidden=64, intermediate=128)


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    return random_adapter(checkpoint, tmp_path / "mine")


def refusal(checkpoint: Path, adapter: Path | str, scale: str = "") -> ConversionError:
    """The error that the conversion ends with, having left nothing behind."""
    output = checkpoint.parent / "out"
    with pytest.raises(ConversionError) as caught:
        converted(checkpoint, output, "F16", lora=[f"{adapter}{scale}"])
    assert not output.is_dir() or files_in(output) == []
    assert caught.value.remedy
    return caught.value


def edit_tensors(adapter: Path, edit: Edit) -> None:
    state = load_file(adapter / WEIGHTS)
    edit(state)
    save_file(state, adapter / WEIGHTS)


KINDS: dict[str, Any] = {
    "IA3": lambda: peft.IA3Config(target_modules=["query_key_value"], feedforward_modules=[]),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "ADALORA": lambda: peft.AdaLoraConfig(target_modules=["query_key_value"], total_step=10),
    "LOHA": lambda: peft.LoHaConfig(target_modules=["query_key_value"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(base_model(checkpoint), KINDS[kind]()).save_pretrained(str(tmp_path / "mine"))
    error = refusal(checkpoint, tmp_path / "mine")
    assert type(error) is UnsupportedModelError
    assert f"an adapter of the kind {kind}, not LORA" in error.message
    assert ("a GGUF cannot hold it" if kind == "PROMPT_TUNING" else "merge_and_unload") in error.remedy


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "DoRA (use_dora)"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "'pissa'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "'olora'"),
    "activated LoRA": ({"alora_invocation_tokens": [5, 6]}, "activated LoRA (alora_invocation_tokens)"),
    "single tokens": ({"trainable_token_indices": {"embed_in": [3]}}, "trainable_token_indices"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_that_are_more_than_a_sum(checkpoint: Path, tmp_path: Path, variant: str) -> None:
    options, named = VARIANTS[variant]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = refusal(checkpoint, random_adapter(checkpoint, tmp_path / "mine", **options))
    assert type(error) is UnsupportedModelError
    assert named in error.message


def test_an_option_that_is_not_known(checkpoint: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", layer_replication=[[0, 2], [1, 2]])
    assert "asks for layer_replication, which is not merged here" in refusal(checkpoint, adapter).message


def test_an_adapter_of_a_wider_model(checkpoint: Path, tmp_path: Path) -> None:
    wider = random_checkpoint(tmp_path / "wider", hidden=128, intermediate=128)
    adapter = random_adapter(wider, tmp_path / "mine")
    error = refusal(checkpoint, adapter)
    assert "lora_A of gpt_neox.layers.0.attention.query_key_value is 4 x 128, and base" in error.message
    assert error.remedy == f"It was made for another model: {wider}; give that as SOURCE."


def test_an_adapter_of_a_deeper_model(checkpoint: Path, tmp_path: Path) -> None:
    deeper = random_checkpoint(tmp_path / "deeper", hidden=64, intermediate=128, layers=3)
    message = refusal(checkpoint, random_adapter(deeper, tmp_path / "mine")).message
    assert "changes what base has not: gpt_neox.layers.2.attention.query_key_value" in message


QKV = "base_model.model.gpt_neox.layers.0.attention.query_key_value"
TENSORS: dict[str, tuple[Edit, str]] = {
    "a name that is not in the base": (
        lambda state: state.update(
            {f"base_model.model.h.0.q_proj.lora_{part}.weight": state[f"{QKV}.lora_{part}.weight"] + 1 for part in "AB"}
        ),
        "changes what base has not: h.0.q_proj",
    ),
    "one half of a pair": (lambda state: state.pop(f"{QKV}.lora_B.weight"), "holds no lora_B of gpt_neox.layers.0"),
    "a module of the settings without weights": (
        lambda state: [state.pop(f"{QKV}.lora_{part}.weight") for part in "AB"],
        "the weights lack gpt_neox.layers.0.attention.query_key_value",
    ),
    "a module that the settings do not name": (
        lambda state: state.update(
            {
                f"base_model.model.gpt_neox.layers.0.attention.dense.lora_{part}.weight": torch.zeros(shape)
                for part, shape in (("A", (4, 64)), ("B", (64, 4)))
            }
        ),
        "the weights hold, unasked for, gpt_neox.layers.0.attention.dense",
    ),
    "another rank": (
        lambda state: state.update({f"{QKV}.lora_A.weight": torch.zeros(2, 64)}),
        "is 2 x 64, and base with its rank calls for 4 x 64",
    ),
    "a module of a classifier": (
        lambda state: state.update({"base_model.model.score.weight": torch.zeros(2, 64)}),
        "changes what base has not: score.weight",
    ),
    "an infinite value": (
        lambda state: state[f"{QKV}.lora_A.weight"].view(-1).__setitem__(7, float("inf")),
        f"NaN or infinite values in {QKV}.lora_A.weight",
    ),
    "another method's tensor": (
        lambda state: state.update({f"{QKV}.lora_magnitude_vector": torch.ones(192)}),
        f"holds {QKV}.lora_magnitude_vector, which is no part of plain LoRA",
    ),
}


@pytest.mark.parametrize("form", TENSORS)
def test_weights_that_do_not_fit_are_never_left_out_in_silence(checkpoint: Path, adapter: Path, form: str) -> None:
    edit, message = TENSORS[form]
    edit_tensors(adapter, edit)
    assert message in refusal(checkpoint, adapter).message


def test_a_sum_beyond_float32(checkpoint: Path, adapter: Path) -> None:
    edit_tensors(adapter, lambda state: [values.fill_(1e30) for values in state.values()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's
        message = refusal(checkpoint, adapter).message
    assert "attention.query_key_value.weight is beyond float32 with the adapter in it" in message


def test_a_bias_that_the_base_has_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden": 64, "intermediate": 128}
    adapter = random_adapter(random_checkpoint(tmp_path / "b", **options), tmp_path / "mine", lora_bias=True)
    base = random_checkpoint(tmp_path / "base", attention_bias=False, **options)
    assert (
        "changes what base has not: gpt_neox.layers.0.attention.query_key_value.bias" in refusal(base, adapter).message
    )


@pytest.mark.parametrize("changed", [{"target_modules": ["embed_in"]}, {"modules_to_save": ["embed_in"]}])
def test_a_base_whose_embedding_is_its_output(tmp_path: Path, changed: dict[str, Any]) -> None:
    base = random_checkpoint(tmp_path / "base", hidden=64, intermediate=128, tie_word_embeddings=True)
    error = refusal(base, random_adapter(base, tmp_path / "mine", **changed))
    assert "the embedding or the output matrix, which are one and the same in base" in error.message


def test_a_vocabulary_that_grew_without_its_rows(checkpoint: Path, adapter: Path) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(dict(tokenizer["added_tokens"][0]) | {"id": 330, "content": "<|new|>"})
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refusal(checkpoint, adapter).message
    assert f"The vocabulary of {adapter} grew: its tokenizer has ids up to 330, but there are only 330 rows" in message
    (path,) = converted(checkpoint, checkpoint.parent / "own", "F16", lora=[str(adapter)], tokenizer=checkpoint)
    assert path.is_file()


def test_a_vocabulary_that_grew_with_the_rows_of_one_matrix(checkpoint: Path, tmp_path: Path) -> None:
    model = base_model(checkpoint)
    model.resize_token_embeddings(332)
    adapter = random_adapter(checkpoint, tmp_path / "mine", model=model)
    edit_tensors(adapter, lambda state: state.pop("base_model.model.lm_head.weight"))
    assert f"The vocabulary of {adapter} grew from 330 to 332" in refusal(checkpoint, adapter).message


def test_a_matrix_that_comes_whole_cannot_be_scaled(checkpoint: Path, tmp_path: Path) -> None:
    adapter = random_adapter(checkpoint, tmp_path / "mine", modules_to_save=["final_layer_norm"])
    message = refusal(checkpoint, adapter, "=0.5").message
    assert "brings gpt_neox.final_layer_norm.bias whole" in message
    assert "cannot be scaled by 0.5" in message


def test_two_adapters_that_bring_the_same_matrix(checkpoint: Path, tmp_path: Path) -> None:
    first = random_adapter(checkpoint, tmp_path / "first", modules_to_save=["lm_head"])
    second = random_adapter(checkpoint, tmp_path / "second", target_modules=["lm_head"])
    with pytest.raises(UnsupportedModelError, match=r"Two adapters change embed_out\.weight"):
        converted(checkpoint, tmp_path / "out", "F16", lora=[str(first), str(second)])


@pytest.mark.parametrize("scale", ["=much", "=", "=nan", "=inf"])
def test_a_scale_that_is_no_number(checkpoint: Path, adapter: Path, scale: str) -> None:
    with pytest.raises(WeblabError, match=f"{scale[1:]!r} is no scale of an adapter"):
        converted(checkpoint, checkpoint.parent / "out", "F16", lora=[f"{adapter}{scale}"])


SETTINGS: dict[str, dict[str, Any]] = {
    "r": {"r": 0},
    "lora_alpha": {"lora_alpha": "16"},
    "rank_pattern": {"rank_pattern": {"dense": -1}},
    "target_modules": {"target_modules": [7]},
    "no regular expression": {"target_modules": "("},
}


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_that_are_damaged(checkpoint: Path, adapter: Path, key: str) -> None:
    edit_json(adapter / "adapter_config.json", **SETTINGS[key])
    error = refusal(checkpoint, adapter)
    assert type(error) is CheckpointError
    assert key in error.message


def test_a_folder_that_is_none(checkpoint: Path, tmp_path: Path) -> None:
    assert "is no adapter: it has no adapter_config.json" in refusal(checkpoint, checkpoint).message
    assert "is no adapter" in refusal(checkpoint, tmp_path / "nowhere").message


def test_settings_without_weights(checkpoint: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    assert "has no adapter_model.safetensors or adapter_model.bin" in refusal(checkpoint, adapter).message


def test_weights_that_are_cut_off(checkpoint: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-100])
    assert f"The adapter {WEIGHTS} is truncated or damaged" in refusal(checkpoint, adapter).message


def test_weights_that_want_to_run_code(checkpoint: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    marker = adapter / "marker"
    torch.save({"x": Malicious(marker.mkdir)}, adapter / "adapter_model.bin")
    assert "wants to run code" in refusal(checkpoint, adapter).message
    assert not marker.exists()
