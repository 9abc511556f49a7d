"""Importance matrices for the tests: random ones, and files of them by gguf's own writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


class _Writer(gguf.GGUFWriter):
    def add_architecture(self) -> None:
        """An importance matrix has none."""


def random_tensors(columns: Mapping[str, int], n_tokens: int = 1000, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Sums and counts for weights with so many columns, (1, columns) and (1, 1), some columns far above the others."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name in sorted(columns):
        sums = random.lognormal(3.0, 2.0, columns[name]).astype(np.float32)
        tensors[f"{name}.in_sum2"] = sums.reshape(1, -1)
        tensors[f"{name}.counts"] = np.array([[n_tokens]], np.float32)
    return tensors


def write_with_gguf(
    path: Path,
    tensors: Tensors,
    *,
    kind: str | None = "imatrix",
    datasets: Sequence[str] | None = ("texts.txt",),
    chunk_count: int | None = 2,
    chunk_size: int | None = 512,
) -> Path:
    """What llama-imatrix would write, by the gguf package; what is None is left out."""
    writer = _Writer(path, "")
    if kind is not None:
        writer.add_type(kind)
    if datasets is not None:
        writer.add_array("imatrix.datasets", datasets)
    if chunk_count is not None:
        writer.add_uint32("imatrix.chunk_count", chunk_count)
    if chunk_size is not None:
        writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
