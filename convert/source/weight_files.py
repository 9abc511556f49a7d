"""Which of a checkpoint's files hold its weights, told from the names alone: in a folder as on the Hub."""

import re
from collections.abc import Collection
from dataclasses import dataclass

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")

_FSDP_FILE = "pytorch_model_fsdp.bin"
"""What accelerate writes of a model trained with FSDP, where it gathers the whole of it."""

_TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(pt|pth|bin)|(bf16_)?zero_.*_states\.pt"
)
"""What transformers' Trainer and DeepSpeed keep beside the weights."""


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights are: in the shards that `index` names or, where that is "", in the file `single`.

    `left_aside` is an index that says otherwise, "" where there is none.
    """

    index: str
    single: str
    left_aside: str = ""


def weight_files(names: Collection[str]) -> WeightFiles | None:
    """Choose among a folder's file names in the order of transformers; None where none holds weights.

    A single file goes before an index, .safetensors before .bin, and a .pt or .pth is taken where it is the only one.
    """
    for index, single in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        if single in names:
            return WeightFiles("", single, index if index in names else "")
        if index in names:
            return WeightFiles(index, "")
    if _FSDP_FILE in names:
        return WeightFiles("", _FSDP_FILE)
    others = state_dicts(names)
    return WeightFiles("", others[0]) if len(others) == 1 else None


def state_dicts(names: Collection[str]) -> list[str]:
    """Return the .pt and .pth files among `names`, sorted, without a training's state."""
    return sorted(
        name
        for name in names
        if name.endswith((".pt", ".pth")) and "/" not in name and not _TRAINING_STATE.fullmatch(name)
    )


def left_aside(files: WeightFiles) -> str:
    """Return the sentence that says which index is not followed."""
    return (
        f"{files.single} is converted, as transformers reads it; {files.left_aside}, which names other shards, "
        "is left aside."
    )
