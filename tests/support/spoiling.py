"""GGUF files with one thing changed on purpose, by gguf's own reader opened for writing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray


def spoiled(path: Path, folder: Path, spoil: Callable[[GGUFReader], None]) -> Path:
    """A copy of `path` in `folder`, changed by `spoil` in place."""
    copy = folder / path.name
    shutil.copyfile(path, copy)
    reader = GGUFReader(copy, "r+")
    spoil(reader)
    reader.data.flush()
    return copy


def tensor_rows(reader: GGUFReader, name: str) -> NDArray[Any]:
    """The stored rows of a tensor, to be written to: blocks as bytes, or float16 and float32 values."""
    return next(tensor.data for tensor in reader.tensors if tensor.name == name)


def set_scalar(reader: GGUFReader, key: str, value: Any) -> None:
    """Write another value of the same type."""
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value


def swap_strings(reader: GGUFReader, key: str, first: int, second: int) -> None:
    """Exchange two strings of an array that have the same length."""
    field = reader.fields[key]
    one, other = field.parts[field.data[first]], field.parts[field.data[second]]
    kept = np.array(one)
    one[:] = other
    other[:] = kept
