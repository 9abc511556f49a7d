"""What people have on their disks that is no checkpoint to convert: each is said as what it is, with what to do."""

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, ConversionError, UnsupportedModelError
from convert.source.json_files import AGAIN, read_json
from convert.source.names import is_packed
from convert.source.source import base_models
from convert.source.weight_files import INDEX_FILES, SINGLE_FILES, state_dicts, weight_files

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")
_NEOX = re.compile(r"(.+/)?layer_\d+-model_\d+-model_states\.pt")
_DEEPSPEED = re.compile(r"(.+/)?((bf16_)?zero_.*|mp_rank_\d+.*)_states\.pt|zero_to_fp32\.py")
_DISTRIBUTED = re.compile(r"((?P<folder>.+)/)?[^/]+\.distcp")
_FSDP_RANK = re.compile(r"pytorch_model_fsdp_rank\d+\.bin|pytorch_model_rank\d+\.bin")
_TRAINER = re.compile(r"checkpoint-(\d+)/.+")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes"}


def listing(folder: Path) -> set[str]:
    """Return the files in `folder` and in the folders within it, by their paths from there with /."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return {path.relative_to(folder).as_posix() for path in found if _is_file(path)}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be entered
        return False


def no_weights(where: str, names: Collection[str], adapter: Mapping[str, Any] | None = None) -> ConversionError:
    """Return the error that says what `where`, with files of these `names`, is instead of a model's weights.

    `adapter`: the content of its adapter_config.json, where it has one.
    """
    known = other_form(where, names, adapter)
    if known is not None:
        return known
    several = state_dicts(names)
    if several:
        return CheckpointError(
            f"{where} holds {len(several)} files that could be the weights: {', '.join(several[:4])}.",
            "Leave the one to convert in the folder.",
        )
    expected = ", ".join((*SINGLE_FILES, *INDEX_FILES))
    return CheckpointError(
        f"{where} holds a config.json, but no weights.", f"Expected one of {expected}, or one .pt. {AGAIN}"
    )


def other_form(where: str, names: Collection[str], adapter: Mapping[str, Any] | None = None) -> ConversionError | None:
    """Return the error for an adapter, for shards of a training and for a folder of checkpoints; None for others."""
    if any(_ADAPTER.fullmatch(name) for name in names):
        return _adapter(where, adapter or {})
    if any(map(_NEOX.fullmatch, names)):
        return UnsupportedModelError(
            f"{where} holds a checkpoint in the form of the GPT-NeoX library, one file for each layer.",
            "Convert it to Hugging Face's first, with tools/ckpts/convert_neox_to_hf.py of that library.",
        )
    if any(map(_DEEPSPEED.fullmatch, names)):
        return UnsupportedModelError(
            f"{where} holds DeepSpeed's shards, which were not put together.",
            "Type `python zero_to_fp32.py . .` in the folder that has zero_to_fp32.py, which DeepSpeed wrote there.",
        )
    shard = next(filter(None, map(_DISTRIBUTED.fullmatch, sorted(names))), None)
    if shard is not None:
        folder = f"{where}/{shard['folder']}" if shard["folder"] else where
        return UnsupportedModelError(
            f"{where} holds FSDP's shards, which were not put together.",
            f"Type `{shlex.join(['accelerate', 'merge-weights', folder, where])}`.",
        )
    if any(map(_FSDP_RANK.fullmatch, names)):
        return UnsupportedModelError(
            f"{where} holds the shards of FSDP's single processes, which no tool puts together.",
            "Save it from the training again, with the state dict type FULL_STATE_DICT.",
        )
    steps = sorted(int(match[1]) for match in map(_TRAINER.fullmatch, names) if match)
    if steps and weight_files(names) is None:
        return CheckpointError(
            f"{where} is the folder of a training, with {len(set(steps))} checkpoints in it.",
            f"Give one of them, for example {where}/checkpoint-{steps[-1]}.",
        )
    return None


def _adapter(where: str, config: Mapping[str, Any]) -> ConversionError:
    named = config.get("base_model_name_or_path")
    base = named if isinstance(named, str) else ""
    kind = config.get("peft_type")
    command = shlex.join(["python", "-m", "convert", base or "BASE", "--lora", where])
    return UnsupportedModelError(
        f"{where} is an adapter ({kind if isinstance(kind, str) else 'LoRA'}) of {base or 'a base model'}, "
        "no model of its own.",
        f"Convert its base with the adapter in it: {command}{'' if base else ', with its base for BASE'}.",
    )


def require_unquantized(folder: Path, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise UnsupportedModelError for weights that are quantized already, by their `names` or, without, by config.json.

    A config.json that still has a quantization_config after the weights were made whole again is no obstacle.
    """
    section = config.get("quantization_config")
    if any(map(is_packed, names)) or (section and not names):
        raise quantized(folder, config)


def quantized(folder: Path, config: Mapping[str, Any]) -> UnsupportedModelError:
    """Return the error for weights that are quantized already, which names the original where the files do."""
    section = config.get("quantization_config")
    section = section if isinstance(section, dict) else {}
    in_bits = section.get("load_in_4bit") or section.get("load_in_8bit")
    method = str(section.get("quant_method") or ("bitsandbytes" if in_bits else ""))
    by = f" by {_METHODS.get(method, method)}" if method else ""
    candidates = [*base_models(folder), config.get("_name_or_path")]
    original = next((name for name in candidates if isinstance(name, str) and _HUB_ID.fullmatch(name)), None)
    return UnsupportedModelError(
        f"The weights are quantized already{by}; they cannot be converted.",
        f"Give the original: python -m convert {original}"
        if original
        else "Give the checkpoint that they were quantized from.",
    )


def adapter_config(folder: Path) -> Mapping[str, Any] | None:
    """Return the content of adapter_config.json in `folder`, None where there is none that can be read."""
    try:
        return read_json(folder / ADAPTER_CONFIG)
    except CheckpointError:
        return None
