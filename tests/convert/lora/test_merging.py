"""`--lora`: the GGUF holds, to the last bit in float32, what peft's own merge_and_unload makes of the same adapter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import GPTNeoXForCausalLM

from convert.model.gpt_neox import hyperparameters, map_tensors
from convert.source.checkpoint import open_checkpoint
from tests.support.adapters import base_model, merged_by_peft, random_adapter
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted

DENSE = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]

ADAPTERS: dict[str, dict[str, Any]] = {
    "queries, keys and values": {},
    "all matrices of the layers": {"target_modules": DENSE},
    "all-linear": {"target_modules": "all-linear"},
    "modules by a pattern": {"target_modules": r".*\.(1|2)\.mlp\.dense_h_to_4h"},
    "some layers": {"target_modules": DENSE, "layers_to_transform": [1], "layers_pattern": "layers"},
    "one layer": {"target_modules": ["dense"], "layers_to_transform": 0},
    "modules left out": {"target_modules": DENSE, "exclude_modules": ["dense"]},
    "rank and alpha by pattern": {
        "target_modules": DENSE,
        "rank_pattern": {"dense": 2, r"layers\.1\.mlp\.dense_h_to_4h": 8},
        "alpha_pattern": {r"^gpt_neox\.layers\.0\.attention\.dense": 32},
    },
    "rank-stabilized": {"r": 16, "use_rslora": True, "target_modules": DENSE},
    "rank-stabilized, by pattern": {"use_rslora": True, "target_modules": DENSE, "rank_pattern": {"dense": 16}},
    "embedding": {"target_modules": ["embed_in"]},
    "output matrix": {"target_modules": ["lm_head"]},
    "embedding, output matrix and layers": {"target_modules": ["embed_in", "lm_head", "query_key_value"]},
    "embedding and output whole": {"modules_to_save": ["embed_in", "lm_head"]},
    "norms whole": {"modules_to_save": ["final_layer_norm", "input_layernorm"]},
    "all biases": {"bias": "all"},
    "the biases of its modules": {"bias": "lora_only", "target_modules": ["dense", "dense_4h_to_h"]},
    "biases of its own": {"lora_bias": True, "target_modules": DENSE},
    "both": {"bias": "lora_only", "lora_bias": True},
}


def gguf_tensors(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def expected_tensors(model: GPTNeoXForCausalLM) -> dict[str, NDArray[np.float32]]:
    """What a GGUF of the model holds, from transformers' state dict."""
    hparams = hyperparameters(model.config.to_dict())
    state = {("embed_out.weight" if n == "lm_head.weight" else n): t.numpy() for n, t in model.state_dict().items()}
    found = {}
    for tensor in map_tensors(hparams, state.keys()):
        values = np.zeros(tensor.shape, np.float32) if tensor.source is None else state[tensor.source]
        found[tensor.name] = values if tensor.row_order is None else values[tensor.row_order]
    return found


def assert_equal(path: Path, model: GPTNeoXForCausalLM) -> None:
    found, expected = gguf_tensors(path), expected_tensors(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("base") / "base", hidden=64, intermediate=128, layers=3)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_file_holds_what_peft_merges(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    adapter = random_adapter(checkpoint, tmp_path / "mine", **ADAPTERS[kind])
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[str(adapter)])
    assert path.name == "base-mine-F32.gguf"
    assert_equal(path, merged_by_peft(checkpoint, (adapter, 1.0)))
    with pytest.raises(AssertionError):
        assert_equal(path, base_model(checkpoint))


@pytest.mark.parametrize("scale", [0.5, -2.0, 0.0])
def test_a_scale(checkpoint: Path, tmp_path: Path, scale: float) -> None:
    options: dict[str, Any] = {"target_modules": DENSE, "lora_bias": True}
    if scale == 0.5:  # of which peft saves the base's whole matrix too
        options = {"target_modules": ["lm_head", "embed_in", "dense"]}
    adapter = random_adapter(checkpoint, tmp_path / "mine", **options)
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[f"{adapter}={scale}"])
    assert_equal(path, merged_by_peft(checkpoint, (adapter, scale)) if scale else base_model(checkpoint))


def test_several_adapters_are_merged_in_their_order(checkpoint: Path, tmp_path: Path) -> None:
    first = random_adapter(checkpoint, tmp_path / "first", target_modules=DENSE)
    second = random_adapter(checkpoint, tmp_path / "second", seed=2, r=8, modules_to_save=["final_layer_norm"])
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[f"{first}=0.5", str(second)])
    assert path.name == "base-first-second-F32.gguf"
    assert_equal(path, merged_by_peft(checkpoint, (first, 0.5), (second, 1.0)))


def test_values_whose_sums_are_rounded_differ_by_no_more_than_the_order_of_the_sum(
    checkpoint: Path, tmp_path: Path
) -> None:
    adapter = random_adapter(checkpoint, tmp_path / "mine", exact=False, r=64, target_modules=DENSE)
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[str(adapter)])
    found, expected = gguf_tensors(path), expected_tensors(merged_by_peft(checkpoint, (adapter, 1.0)))
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 4 * np.finfo(np.float32).eps, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_in_16_bits_is_merged_in_float32(checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """As peft loads it, with autocast_adapter_dtype."""
    adapter = random_adapter(checkpoint, tmp_path / "mine", target_modules=DENSE)
    state = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, adapter / "adapter_model.bin")
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[str(adapter)])
    assert_equal(path, merged_by_peft(checkpoint, (adapter, 1.0)))


def test_names_as_older_versions_and_wrappers_save_them(checkpoint: Path, tmp_path: Path) -> None:
    adapter = random_adapter(checkpoint, tmp_path / "mine", target_modules=["lm_head", "dense"])
    expected = merged_by_peft(checkpoint, (adapter, 1.0))
    state = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    older = {f"module.{name.replace('.lm_head.', '.embed_out.')}": tensor for name, tensor in state.items()}
    named = {name.replace("lora_A.weight", "lora_A.default.weight"): tensor for name, tensor in older.items()}
    torch.save(named, adapter / "adapter_model.bin")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"target_modules": ["embed_out", "dense"], "fan_in_fan_out": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[str(adapter)])
    assert_equal(path, expected)


@pytest.mark.parametrize("saved", [["embed_in", "lm_head"], None])
def test_a_vocabulary_that_grew_comes_with_its_rows_and_its_tokenizer(
    checkpoint: Path, tmp_path: Path, saved: list[str] | None
) -> None:
    def grown() -> GPTNeoXForCausalLM:
        model = base_model(checkpoint)
        torch.manual_seed(3)
        model.resize_token_embeddings(332)
        return model

    adapter = random_adapter(checkpoint, tmp_path / "mine", model=grown(), modules_to_save=saved)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    template = dict(tokenizer["added_tokens"][0])
    tokenizer["added_tokens"] += [template | {"id": 330 + n, "content": f"<|new{n}|>"} for n in range(2)]
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[str(adapter)])
    assert_equal(path, merged_by_peft(checkpoint, (adapter, 1.0), model=grown()))
    assert GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()[-2:] == ["<|new0|>", "<|new1|>"]


def test_every_shard_of_any_form_is_merged(tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden": 64, "intermediate": 128, "dtype": "bfloat16", "shards": 3}
    checkpoint = random_checkpoint(tmp_path / "base", form="bin", **options)
    same = random_checkpoint(tmp_path / "same", **options)
    adapter = random_adapter(same, tmp_path / "mine", target_modules=DENSE, modules_to_save=["lm_head"])
    (path,) = converted(checkpoint, tmp_path / "out", "F32", lora=[str(adapter)])
    assert len(open_checkpoint(checkpoint).shards) > 1
    assert_equal(path, merged_by_peft(same, (adapter, 1.0)))


def test_the_quantizer_sees_the_merged_weights(checkpoint: Path, tmp_path: Path) -> None:
    """The same bytes as a checkpoint that peft merged and transformers saved, in every kind of type."""
    adapter = random_adapter(checkpoint, tmp_path / "mine", target_modules=DENSE)
    merged_by_peft(checkpoint, (adapter, 1.0)).save_pretrained(tmp_path / "base-mine")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base-mine" / name).write_bytes((checkpoint / name).read_bytes())
    mixtures = ("F16", "Q8_0", "Q4_0")
    ours = converted(checkpoint, tmp_path / "out", *mixtures, lora=[str(adapter)])
    theirs = converted(tmp_path / "base-mine", tmp_path / "peft", *mixtures)
    for found, expected in zip(ours, theirs, strict=True):
        tensors = gguf_tensors(expected)
        assert {name: data.tobytes() for name, data in gguf_tensors(found).items()} == {
            name: data.tobytes() for name, data in tensors.items()
        }
