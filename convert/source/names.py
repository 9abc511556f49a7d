"""The names of a GPT-NeoX's tensors, under whatever wrappers they were saved.

What wraps a model while it is trained gives its parameters longer names: torch's data parallelism `module.`, peft
`base_model.model.`, Lightning `model.`, torch.compile `_orig_mod.`, also around single layers. transformers 5 calls the
output matrix `lm_head` in memory, and `embed_out` in its files as ever.
"""

import re
from collections.abc import Iterable

from convert.errors import CheckpointError

_BUFFER = re.compile(
    r"gpt_neox\.(layers\.(0|[1-9][0-9]{0,8})\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq)"
)
OUTPUT_NAMES = ("embed_out", "lm_head")
"""The module of the output matrix, in files and, from transformers 5 on, in memory."""

_WITHIN = "_orig_mod."
_BEFORE = re.compile(r"(?:module\.|base_model\.model\.|model\.)+(?=gpt_neox\.|embed_out\.|lm_head\.)")
_UNMERGED = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module|ia3_\w+)\.")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|weight_format|weight_packed|weight_scale|weight_scale_inv|W_q"
    r"|weight\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..+))$"
)


def canonical(name: str) -> str:
    """Return the name that transformers writes into a GPT-NeoX checkpoint's files for the tensor saved as `name`."""
    name = name.replace(_WITHIN, "")
    before = _BEFORE.match(name)
    name = name[before.end() :] if before else name
    return "embed_out.weight" if name == "lm_head.weight" else name


def is_buffer(name: str) -> bool:
    """Whether `name` is saved in old checkpoints, but is no weight: causal masks and rotary frequencies."""
    return _BUFFER.fullmatch(name) is not None


def is_packed(name: str) -> bool:
    """Whether a tensor of this name is part of a matrix quantized by GPTQ, AWQ, bitsandbytes or their like."""
    return _PACKED.search(name) is not None


def require_merged(names: Iterable[str], where: str) -> None:
    """Raise CheckpointError when the `names`, found in `where`, are those of a model with an adapter in it."""
    found = next((name for name in names if _UNMERGED.search(name)), None)
    if found is not None:
        raise CheckpointError(
            f"{where} holds a model with an adapter beside its weights, not merged into them: {found}.",
            "Save it again after model.merge_and_unload(), or the adapter alone with its save_pretrained.",
        )


def saved_twice(name: str, where: str) -> CheckpointError:
    """Return the error for two tensors in `where` that both mean `name`."""
    return CheckpointError(
        f"{where} holds {name} twice, under different prefixes.", "Save the model's own state_dict() alone."
    )
