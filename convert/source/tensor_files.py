"""The tensors in a file, memory-mapped: `.safetensors`, and torch's zip format (`.bin`, `.pt`).

The latter is read with `weights_only`, so that no code from the file ever runs. torch is imported only when such a file
is opened.
"""

import json
import pickle
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source.json_files import AGAIN
from convert.source.names import saved_twice
from convert.source.reading import widen

Dtype = Literal["F32", "F16", "BF16"]

Rows = slice | NDArray[np.intp]
"""Which rows of a matrix, or values of a vector."""

Added = Callable[[Rows], NDArray[np.float32]]
"""What is added to these rows when they are read, in their shape: a new array, which may be written to."""

Naming = Callable[[Collection[str], str], Mapping[str, str]]
"""Called with the names saved in a file, and with how to call that file: the names to use for those that are wanted."""

_STATE_KEYS = ("state_dict", "model", "module")
"""Under which Lightning, training loops and DeepSpeed keep the state dict among other things."""

_NUMPY_DTYPES: dict[Dtype, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: (rows, columns) or (values,), not read before it is indexed.

    `data` is float32, float16, or for BF16 the raw uint16. `position` is where it begins in the file, in bytes; for a
    `.bin`, in bytes from the file's first tensor. `added` is what adapters add to it, in float32 and in this order.
    """

    dtype: Dtype
    data: NDArray[Any]
    position: int = 0
    added: Sequence[Added] = ()

    def is_finite(self, data: NDArray[Any]) -> bool:
        """Whether `data`, values of this tensor as stored, hold neither NaN nor infinity."""
        if self.dtype == "F32":
            return bool(np.isfinite(data).all())
        exponent = 0x7C00 if self.dtype == "F16" else 0x7F80
        return not bool(((data.view(np.uint16) & exponent) == exponent).any())

    def read(self, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """These rows as float32, with what is added to them."""
        return self.to_float32(np.asarray(self.data[rows]), rows)

    def to_float32(self, data: NDArray[Any], rows: Rows = slice(None)) -> NDArray[np.float32]:
        """`data`, which are the `rows` as stored, exactly, as float32, with what is added to them."""
        wide = self._widened(data)
        for added in self.added:
            total = added(rows)
            total += wide
            wide = total
        return wide

    def _widened(self, data: NDArray[Any]) -> NDArray[np.float32]:
        if self.dtype == "F16":
            return widen(data)
        if self.dtype == "BF16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32, copy=False)


def read_tensors(path: Path, naming: Naming, what: str) -> dict[str, StoredTensor]:
    """The tensors of a file, by the names that `naming` gives them; `what` says what the file is to whoever reads it.

    Raises CheckpointError for a file that is damaged, UnsupportedModelError for other types of values.
    """
    read = read_safetensors if path.suffix == ".safetensors" else _read_bin
    return read(path, naming, what)


def as_saved(names: Collection[str], where: str) -> Mapping[str, str]:  # noqa: ARG001  # a Naming
    """A Naming: all tensors, by the names in the file."""
    return {name: name for name in names}


def read_safetensors(path: Path, naming: Naming = as_saved, what: str = "file") -> dict[str, StoredTensor]:
    """The tensors of a .safetensors file, whatever its name, memory-mapped. Raises as `read_tensors` does."""
    from safetensors import SafetensorError, safe_open

    where = f"The {what} {path.name}"
    try:
        with safe_open(path, framework="numpy"):
            pass  # the library checks that header and file agree
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            data_start = file.tell()
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{where} is truncated or damaged: {error}.", AGAIN) from None
    header.pop("__metadata__", None)
    tensors: dict[str, StoredTensor] = {}
    for saved_name, name in naming(header, where).items():
        info = header[saved_name]
        if name in tensors:
            raise saved_twice(name, where)
        dtype = _known_dtype(info["dtype"], name)
        shape = tuple(info["shape"])
        position = data_start + info["data_offsets"][0]
        data: NDArray[Any] = (
            np.memmap(path, _NUMPY_DTYPES[dtype], "r", position, shape)
            if np.prod(shape)
            else np.empty(shape, _NUMPY_DTYPES[dtype])
        )
        tensors[name] = StoredTensor(dtype, data, position)
    return tensors


def _read_bin(path: Path, naming: Naming, what: str) -> dict[str, StoredTensor]:
    import torch

    where = f"The {what} {path.name}"
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"{where} is not in torch's zip format: it is damaged, or written by a torch before 1.6.",
                f"{AGAIN} An old file can be re-saved with torch.save.",
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(f"{where} is damaged, or holds more than tensors.", AGAIN) from None
        raise CheckpointError(
            f"{where} wants to run code when it is read ({wanted[1]}); it was refused, nothing was run.",
            "Weights need no code. Do not load this file with other tools either, unless you trust its author; if it "
            "is yours, save the model's state_dict() alone.",
        ) from None
    except Exception as error:  # a damaged pickle can make the unpickler raise anything, a KeyError too
        reason = str(error).partition(". ")[0]  # what torch says after it is advice to trust the file
        raise CheckpointError(f"{where} is truncated or damaged: {type(error).__name__} {reason}.", AGAIN) from None
    state = _innermost(state)
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
        for value in state.values()
    ):
        raise CheckpointError(
            f"{where} holds no state dict of dense tensors.",
            "Save the model with save_pretrained, or its state_dict() alone with torch.save.",
        )
    state = {str(name): tensor for name, tensor in state.items()}
    tensors: dict[str, StoredTensor] = {}
    first = min((tensor.data_ptr() for tensor in state.values()), default=0)
    for saved_name, name in naming(state, where).items():
        tensor = state[saved_name]
        position = tensor.data_ptr() - first
        if name in tensors and tensors[name].position != position:
            raise saved_twice(name, where)
        dtype = _known_dtype(
            {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}.get(tensor.dtype, str(tensor.dtype)),
            name,
        )
        data = tensor.detach()  # parameters have a gradient to follow, and then no array
        array = (data.view(torch.uint16) if dtype == "BF16" else data).numpy()
        tensors[name] = StoredTensor(dtype, array, position)
    return tensors


def _innermost(state: Any) -> Any:
    """The state dict that is kept under another name among what else a training saves."""
    for _ in range(3):  # not for ever: what is damaged may hold itself
        if isinstance(state, dict):
            state = next((state[key] for key in _STATE_KEYS if isinstance(state.get(key), dict)), state)
    return state


def _known_dtype(dtype: str, tensor: str) -> Dtype:
    if dtype == "F32":
        return "F32"
    if dtype == "F16":
        return "F16"
    if dtype == "BF16":
        return "BF16"
    raise UnsupportedModelError(
        f"The tensor {tensor} is stored as {dtype}; only float16, bfloat16 and float32 weights can be converted.",
        "A checkpoint that is quantized already (GPTQ, AWQ, 8-bit) will not do: take the original one.",
    )
