"""The grid of a K-quant block: which values its scales allow, and other levels on the same scales.

A quantized weight is step * level - offset. Step and offset belong to a block of 16 or 32 weights and are what the
search for scales has found; the level is free. `compensation` chooses levels that the search alone would not.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.quantization import kernels
from convert.quantization.block_types import SUPER_BLOCK, TYPES

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Steps and offsets of all blocks of some rows: (n_rows, n_blocks); levels go from `lowest` to `highest`."""

    steps: Floats
    offsets: Floats
    block: int
    lowest: int
    highest: int


def read_grid(blocks: NDArray[np.uint8], ggml_type: GGMLQuantizationType) -> Grid:
    """The grid of quantized rows (n_rows, bytes per row) of one of the kernels' types."""
    kind = TYPES[ggml_type]
    parts = blocks.reshape(-1, kind.layout.size)
    if kind.plain is None:
        steps = _float16(parts[:, 208:210]) * parts[:, 192:208].view(np.int8).astype(np.float32)
        offsets = np.zeros_like(steps)
    else:
        low, middle, high = (parts[:, at : at + 4] for at in (4, 8, 12))
        scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
        minima = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
        steps, offsets = _float16(parts[:, 0:2]) * scales, _float16(parts[:, 2:4]) * minima
    n_rows = len(blocks)
    return Grid(steps.reshape(n_rows, -1), offsets.reshape(n_rows, -1), kind.block, kind.lowest, kind.highest)


def with_values(
    blocks: NDArray[np.uint8], ggml_type: GGMLQuantizationType, grid: Grid, values: Floats
) -> NDArray[np.uint8]:
    """The blocks with the levels that decode to `values` (n_rows, n_columns), which lie on their grid."""
    kind = TYPES[ggml_type]
    parts = blocks.copy().reshape(-1, kind.layout.size)
    n_blocks = SUPER_BLOCK // kind.block
    kernels.write_levels(
        kind, np.ascontiguousarray(values), grid.steps.reshape(-1, n_blocks), grid.offsets.reshape(-1, n_blocks), parts
    )
    return parts.reshape(blocks.shape)


def _float16(data: NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)
