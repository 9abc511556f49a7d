"""LoRAs of small models, made and merged by peft itself."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPTNeoXForCausalLM

from convert.model.adapter_gguf import write_adapter
from convert.model.find_checkpoint import find_settings
from convert.source.lora import open_lora


def base_model(checkpoint: Path) -> GPTNeoXForCausalLM:
    """The checkpoint in transformers, its weights as float32."""
    return GPTNeoXForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def random_adapter(
    checkpoint: Path, folder: Path, *, exact: bool = True, seed: int = 1, model: Any = None, **config: Any
) -> Path:
    """Save a LoRA of the checkpoint, as training leaves it: none of its trained values is what it was made with.

    With `exact` they are such that a product of them has no rounding error, in whatever order it is summed.
    """
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value"], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's about tied layers and the like
        adapted = get_peft_model(model or base_model(checkpoint), LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    values = torch.randn_like(parameter) * 0.1
                    parameter.copy_((values * 64).round() / 64 if exact else values)
        adapted.save_pretrained(str(folder))
    return folder


def adapted_by_peft(checkpoint: Path, adapter: Path) -> Any:
    """The model with the adapter beside its weights, not merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = PeftModel.from_pretrained(base_model(checkpoint), adapter)
    return adapted.eval()


def merged_by_peft(checkpoint: Path, *adapters: tuple[Path, float], model: Any = None) -> GPTNeoXForCausalLM:
    """The model with the adapters merged one after the other, each at its scale, in float32."""
    merged: Any = model or base_model(checkpoint)
    for folder, scale in adapters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted: Any = PeftModel.from_pretrained(merged, folder)
            for module in adapted.modules():
                if scale != 1.0 and hasattr(module, "set_scale"):
                    module.set_scale("default", scale)
            merged = adapted.merge_and_unload()
    return merged  # type: ignore[no-any-return]


def as_gguf(adapter: Path, base: Path, output: Path) -> Path:
    """What `python -m convert.lora` makes of an adapter."""
    checkpoint, source = find_settings(str(base), None)
    write_adapter(checkpoint, source, open_lora(str(adapter), lambda _: None), output)
    return output
