"""Each way in which people save a model's weights gives the file that save_pretrained's form gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXForCausalLM

from tests.convert.refusals.damage import Malicious, assert_refused

State = dict[str, torch.Tensor]
Gguf = Callable[[], bytes]


class Lightning(torch.nn.Module):
    """A module around the model, as training frameworks have it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


class Peft(torch.nn.Module):
    """The names that a model has within peft's two modules."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = Lightning(model)


def with_compiled_layers(model: Any) -> Any:
    layers = model.gpt_neox.layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer)
    return model


WRAPPERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "the model itself": ("lm_head.weight", lambda model: model),
    "DataParallel": ("module.lm_head.weight", torch.nn.DataParallel),
    "torch.compile": ("_orig_mod.lm_head.weight", torch.compile),
    "both": ("module._orig_mod.lm_head.weight", lambda model: torch.nn.DataParallel(torch.compile(model))),
    "Lightning": ("model.lm_head.weight", Lightning),
    "peft": ("base_model.model.lm_head.weight", Peft),
    "compiled layers": ("gpt_neox.layers.0._orig_mod.attention.dense.weight", with_compiled_layers),
}


def saved_sharded(state: State, folder: Path, form: str) -> None:
    """Two shards and an index, as DeepSpeed's zero_to_fp32 writes them."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"{stem}-{number:05}-of-00002.{form}"
        save({name: state[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{'model.safetensors' if form == 'safetensors' else 'pytorch_model.bin'}.index.json").write_text(
        json.dumps(index)
    )


def save(state: State, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_the_state_dict_of_a_model_in_memory(
    model: GPTNeoXForCausalLM, folder: Path, gguf: Gguf, expected: bytes, wrapper: str, name: str
) -> None:
    a_name, wrap = WRAPPERS[wrapper]
    state = wrap(model).state_dict()
    assert a_name in state
    save(state, folder / name)
    assert gguf() == expected


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_same_in_shards(model: GPTNeoXForCausalLM, folder: Path, gguf: Gguf, expected: bytes, form: str) -> None:
    saved_sharded(torch.nn.DataParallel(model).state_dict(), folder, form)
    assert gguf() == expected


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_state_dict_among_what_else_a_training_saves(
    model: GPTNeoXForCausalLM, folder: Path, gguf: Gguf, expected: bytes, key: str
) -> None:
    torch.save({"epoch": 3, key: model.state_dict(), "optimizer": {"lr": 1e-5}}, folder / "pytorch_model.bin")
    assert gguf() == expected


@pytest.mark.parametrize("name", ["model.pt", "epoch-3.pth", "pytorch_model_fsdp.bin"])
def test_a_file_of_another_name_where_it_is_the_only_one(
    model: GPTNeoXForCausalLM, folder: Path, gguf: Gguf, expected: bytes, name: str
) -> None:
    torch.save(model.state_dict(), folder / name)
    assert gguf() == expected


def test_several_files_that_could_be_the_weights_are_named(model: GPTNeoXForCausalLM, folder: Path) -> None:
    for name in ("epoch-1.pt", "epoch-2.pt"):
        torch.save(model.state_dict(), folder / name)
    assert_refused(folder, "2 files that could be the weights: epoch-1.pt, epoch-2.pt")


def test_a_file_that_wants_to_run_code_is_refused_under_any_name(folder: Path) -> None:
    marker = folder / "marker"
    torch.save({"model": Malicious(marker.mkdir)}, folder / "model.pt")
    assert_refused(folder, "model.pt wants to run code")
    assert not marker.exists()


def test_of_a_trainers_checkpoint_only_the_weights_are_read(
    model: GPTNeoXForCausalLM, folder: Path, gguf: Gguf, expected: bytes
) -> None:
    model.save_pretrained(folder)
    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"):
        (folder / name).write_bytes(b"no pickle of this is ever loaded")
    (folder / "trainer_state.json").write_text("{}")
    (folder / "global_step500").mkdir()
    (folder / "global_step500" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    assert gguf() == expected


def test_a_trainers_state_is_not_taken_for_the_weights(folder: Path) -> None:
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
    assert_refused(folder, "no weights")


def test_weights_in_two_forms_under_two_prefixes_are_refused(model: GPTNeoXForCausalLM, folder: Path) -> None:
    state = model.state_dict()
    torch.save(state | {f"module.{name}": tensor + 1 for name, tensor in state.items()}, folder / "model.pt")
    assert_refused(folder, "model.pt", "twice, under different prefixes")


def test_an_adapter_that_was_not_merged_is_named(model: GPTNeoXForCausalLM, folder: Path) -> None:
    """As torch.save(peft_model.state_dict()) writes it."""
    state = {f"base_model.model.{name}": tensor for name, tensor in model.state_dict().items()}
    qkv = "base_model.model.gpt_neox.layers.0.attention.query_key_value"
    state[f"{qkv}.base_layer.weight"] = state.pop(f"{qkv}.weight")
    state[f"{qkv}.lora_A.default.weight"] = torch.ones(4, 64)
    torch.save(state, folder / "model.pt")
    assert_refused(folder, "not merged", qkv)


def test_a_single_file_goes_before_an_index_that_was_left_behind(
    model: GPTNeoXForCausalLM, folder: Path, gguf: Gguf, expected: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    older = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder)
    saved_sharded(older, folder, "safetensors")
    assert gguf() == expected
    assert "model.safetensors.index.json, which names other shards, is left aside." in capsys.readouterr().err
    read = GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())


def test_weights_without_a_config_json_are_said_to_be_that(model: GPTNeoXForCausalLM, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "config.json").unlink()
    assert_refused(folder, "holds weights, but no config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_said_to_be_one(plain: Path, folder: Path, name: str) -> None:
    state = load_file(plain / "model.safetensors")
    save(state, folder / ("pytorch_model.bin" if name.endswith(".bin") else "model.safetensors"))
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4242\n")
    assert_refused(folder, f"{folder / name} is a pointer of git-lfs")


def test_a_pointer_in_the_place_of_a_shard_is_said_to_be_one(plain: Path, folder: Path) -> None:
    saved_sharded(load_file(plain / "model.safetensors"), folder, "safetensors")
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4242\n")
    assert_refused(folder, f"{shard} is a pointer of git-lfs")
