"""What is no checkpoint to convert is said as what it is, with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import CheckpointError, UnsupportedModelError
from tests.convert.refusals.damage import edit_json, refusal
from tests.support.conversions import converted

ADAPTER: dict[str, Any] = {"peft_type": "LORA", "base_model_name_or_path": "matsuo-lab/weblab-10b", "r": 8}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not read")
    return folder


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("beside", ["nothing else", "config.json and the tokenizer"])
def test_an_adapter_alone(folder: Path, tmp_path: Path, weights: str, beside: str) -> None:
    source = folder if beside != "nothing else" else tmp_path / "adapter"
    write(source, weights)
    (source / "adapter_config.json").write_text(json.dumps(ADAPTER))
    error = refusal(source, tmp_path / "output")
    assert error.message == f"{source} is an adapter (LORA) of matsuo-lab/weblab-10b, no model of its own."
    assert error.remedy == (
        f"Convert its base with the adapter in it: python -m convert matsuo-lab/weblab-10b --lora {source}."
    )


@pytest.mark.parametrize("config", ["{}", '{"base_model_name_or_path": null}', "no JSON"])
def test_an_adapter_that_does_not_name_its_base(tmp_path: Path, config: str) -> None:
    write(tmp_path / "adapter", "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_config.json").write_text(config)
    error = refusal(tmp_path / "adapter", tmp_path / "output")
    assert "is an adapter (LoRA) of a base model" in error.message
    assert f"python -m convert BASE --lora {tmp_path / 'adapter'}, with its base for BASE" in error.remedy


FORMS = {
    "DeepSpeed, of a Trainer": (
        [
            "zero_to_fp32.py",
            "latest",
            "global_step500/zero_pp_rank_0_mp_rank_00_model_states.pt",
            "global_step500/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        ],
        "DeepSpeed's shards",
        "python zero_to_fp32.py . .",
    ),
    "DeepSpeed, the step alone": (
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        "DeepSpeed's shards",
        "zero_to_fp32.py",
    ),
    "FSDP, of a Trainer": (
        ["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer.pt"],
        "FSDP's shards",
        "accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}",
    ),
    "FSDP, the shards alone": (["__0_0.distcp", ".metadata"], "FSDP's shards", "accelerate merge-weights {folder}"),
    "FSDP, by rank": (["pytorch_model_fsdp_rank0.bin"], "FSDP's single processes", "FULL_STATE_DICT"),
    "the GPT-NeoX library": (
        ["global_step1000/layer_00-model_00-model_states.pt", "global_step1000/mp_rank_00_model_states.pt"],
        "the form of the GPT-NeoX library",
        "convert_neox_to_hf.py",
    ),
}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_shards_of_a_training_that_were_not_put_together(
    folder: Path, tmp_path: Path, form: str, with_config: bool
) -> None:
    names, said, tool = FORMS[form]
    write(folder, *names)
    if not with_config:
        (folder / "config.json").unlink()
    error = refusal(folder, tmp_path / "output")
    assert type(error) is UnsupportedModelError
    assert f"{folder} holds " in error.message
    assert said in error.message
    assert tool.format(folder=folder) in error.remedy


def test_the_folder_of_a_training_with_its_checkpoints(tmp_path: Path) -> None:
    run = write(tmp_path / "run", *(f"checkpoint-{n}/{name}" for n in (500, 1000) for name in ("config.json", "x.bin")))
    error = refusal(run, tmp_path / "output")
    assert type(error) is CheckpointError
    assert "2 checkpoints" in error.message
    assert f"{run}/checkpoint-1000" in error.remedy


PACKED = {
    "GPTQ": ({"quant_method": "gptq", "bits": 4}, {"qweight": torch.int32, "scales": torch.float16}),
    "AWQ": ({"quant_method": "awq", "bits": 4}, {"qweight": torch.int32, "qzeros": torch.int32}),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, {"weight": torch.uint8, "weight.absmax": torch.float32}),
    "bitsandbytes, 8 bits": ({"load_in_8bit": True}, {"weight": torch.int8, "SCB": torch.float32}),
}


def with_packed_weights(plain: Path, folder: Path, form: str, sharded: bool) -> None:
    settings, parts = PACKED[form]
    state = load_file(plain / "model.safetensors")
    for name in [name for name in state if name.endswith("dense.weight")]:
        del state[name]
        stem = name.removesuffix(".weight")
        state |= {f"{stem}.{part}": torch.ones(8, 4).to(dtype) for part, dtype in parts.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    if sharded:
        shard = "model-00001-of-00001.safetensors"
        (folder / "model.safetensors").rename(folder / shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, shard)}))
    edit_json(folder / "config.json", quantization_config=settings)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("form", PACKED)
def test_weights_that_are_quantized_already(
    plain: Path, folder: Path, tmp_path: Path, form: str, sharded: bool
) -> None:
    with_packed_weights(plain, folder, form, sharded)
    error = refusal(folder, tmp_path / "output")
    assert type(error) is UnsupportedModelError
    assert "are quantized already" in error.message
    assert error.remedy == "Give the checkpoint that they were quantized from."
    (folder / "README.md").write_text("---\nbase_model: matsuo-lab/weblab-10b\n---\n")
    assert refusal(folder, tmp_path / "output").remedy == "Give the original: python -m convert matsuo-lab/weblab-10b"


@pytest.mark.parametrize("form", PACKED)
def test_the_method_is_named_and_the_original_where_only_config_json_names_it(
    plain: Path, folder: Path, tmp_path: Path, form: str
) -> None:
    with_packed_weights(plain, folder, form, sharded=False)
    edit_json(folder / "config.json", _name_or_path="matsuo-lab/weblab-10b")
    error = refusal(folder, tmp_path / "output")
    assert error.message == f"The weights are quantized already by {form.split(',')[0]}; they cannot be converted."
    assert "matsuo-lab/weblab-10b" in error.remedy


def test_weights_that_were_made_whole_again_are_converted(
    plain: Path, folder: Path, tmp_path: Path, expected: bytes
) -> None:
    """A QLoRA model that was merged and dequantized keeps the section in its config.json."""
    (folder / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert converted(folder, tmp_path / "output", "Q8_0")[0].read_bytes() == expected
