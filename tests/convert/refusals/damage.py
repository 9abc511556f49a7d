"""Ways to damage a checkpoint, and what a refusal has to look like."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import CheckpointError, ConversionError
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted, files_in

Form = Literal["safetensors", "bin"]
State = dict[str, torch.Tensor]

FIRST, LAST = "gpt_neox.embed_in.weight", "embed_out.weight"
NORM = "gpt_neox.final_layer_norm.bias"
FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
INDEXES = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NAN, INFINITY = math.nan, math.inf


def small_checkpoint(folder: Path, **options: Any) -> Path:
    return random_checkpoint(folder, **{"hidden": 64, "intermediate": 128} | options)


def refusal(source: Path | str, output: Path, *quants: str) -> ConversionError:
    """The error that the conversion of `source` ends with, having left nothing behind."""
    with pytest.raises(ConversionError) as caught:
        converted(Path(source), output, *(quants or ["Q8_0"]))
    assert not output.is_dir() or files_in(output) == []
    return caught.value


def assert_refused(
    source: Path, *culprits: str, quants: tuple[str, ...] = (), kind: type[ConversionError] = CheckpointError
) -> None:
    error = refusal(source, source.parent / "output", *quants)
    assert type(error) is kind, error
    for culprit in culprits:
        assert culprit in error.message
    assert error.remedy


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[State], Any], form: Form = "safetensors") -> None:
    """Change the only shard: `edit` changes the state dict it is given, or gives what takes its place."""
    path = folder / FILES[form]
    state = {name: tensor.clone() for name, tensor in read_state(path).items()}
    edited = edit(state)
    state = state if edited is None else edited
    if form == "safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path)


def read_state(path: Path) -> State:
    state: State = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return state


def put(*keys_and_value: Any) -> Callable[[Any], Any]:
    """A change to nested lists and dicts: what is at the keys becomes the value."""
    *path, last, value = keys_and_value

    def edit(target: Any) -> None:
        for key in path:
            target = target[key]
        target[last] = value

    return edit


def a_weight_of(value: float, name: str = LAST) -> Callable[[State], None]:
    def edit(state: State) -> None:
        state[name].view(-1)[7] = value

    return edit


class Malicious:
    """Calls `function` when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call
