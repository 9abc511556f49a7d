"""The grid of a K-quant block: which values its scales allow, and other scales and levels in its place.

A quantized weight is step * level - offset. Step and offset belong to a block of 16 or 32 weights: whole numbers, the
scale and the minimum, in units that belong to its super-block. The search for scales finds a grid; `rounding` chooses
scales and levels that the search alone would not.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.quantization import kernels
from convert.quantization.block_types import GRIDS, SUPER_BLOCK

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Of some rows: units (n_rows, n_super_blocks), scales and minima (n_rows, n_blocks), and what levels there are."""

    units: Floats
    minimum_units: Floats
    scales: Floats
    minima: Floats
    block: int
    lowest: int
    highest: int

    @property
    def steps(self) -> Floats:
        """How far the levels of each block are apart: (n_rows, n_blocks)."""
        return self.units.repeat(SUPER_BLOCK // self.block, axis=1) * self.scales

    @property
    def offsets(self) -> Floats:
        """What is subtracted in each block: (n_rows, n_blocks)."""
        return self.minimum_units.repeat(SUPER_BLOCK // self.block, axis=1) * self.minima


def read_grid(blocks: NDArray[np.uint8], ggml_type: GGMLQuantizationType) -> Grid:
    """The grid of quantized rows (n_rows, bytes per row) of one of GRIDS."""
    kind = GRIDS[ggml_type]
    parts = blocks.reshape(-1, kind.layout.size)
    scales: NDArray[np.integer]
    if kind.plain is not None:
        low, middle, high = (parts[:, at : at + 4] for at in (4, 8, 12))
        scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
        minima = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
        units, minimum_units = _float16(parts[:, 0:2]), _float16(parts[:, 2:4])
    else:
        if ggml_type == GGMLQuantizationType.Q3_K:
            scales, units = _signed_6_bits(parts[:, 96:108]), _float16(parts[:, 108:110])
        else:
            scales, units = parts[:, 192:208].view(np.int8), _float16(parts[:, 208:210])
        minima, minimum_units = np.zeros(scales.shape, np.uint8), np.zeros_like(units)
    n_rows = len(blocks)
    return Grid(
        units.reshape(n_rows, -1),
        minimum_units.reshape(n_rows, -1),
        scales.astype(np.float32).reshape(n_rows, -1),
        minima.astype(np.float32).reshape(n_rows, -1),
        kind.block,
        kind.lowest,
        kind.highest,
    )


def with_values(
    blocks: NDArray[np.uint8], ggml_type: GGMLQuantizationType, grid: Grid, values: Floats
) -> NDArray[np.uint8]:
    """The blocks with the scales of `grid`, which has their units, and the levels that decode to `values`.

    `values` (n_rows, n_columns) lie on the grid.
    """
    kind = GRIDS[ggml_type]
    parts = blocks.copy().reshape(-1, kind.layout.size)
    n_blocks = SUPER_BLOCK // kind.block
    scales, minima = grid.scales.reshape(-1, n_blocks), grid.minima.reshape(-1, n_blocks)
    if kind.plain is not None:
        kernels.pack_6_bits(scales.astype(np.uint8), minima.astype(np.uint8), parts)
    elif ggml_type == GGMLQuantizationType.Q3_K:
        parts[:, 96:108] = _packed(scales.astype(np.int8))
    else:
        parts[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    kernels.write_levels(
        kind, np.ascontiguousarray(values), grid.steps.reshape(-1, n_blocks), grid.offsets.reshape(-1, n_blocks), parts
    )
    return parts.reshape(blocks.shape)


def _signed_6_bits(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Q3_K's 16 scales, in 12 bytes: the low four bits of two in each of eight bytes, the upper two of four in each."""
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales: NDArray[np.int8] = (low | high << 4).astype(np.int8) - np.int8(32)
    return scales


def _packed(scales: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The twelve bytes of `_signed_6_bits`."""
    stored = (scales + np.int8(32)).astype(np.uint8)
    low = stored[:, :8] & 15 | (stored[:, 8:] & 15) << 4
    high = stored >> 4
    return np.concatenate([low, high[:, :4] | high[:, 4:8] << 2 | high[:, 8:12] << 4 | high[:, 12:] << 6], axis=1)


def _float16(data: NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)
