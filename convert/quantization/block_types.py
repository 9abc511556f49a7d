"""What tells the K-quants Q3_K, Q4_K, Q5_K and Q6_K apart, as tables.

From `ggml-quants.c` and `ggml-common.h`: the trials are the arguments of make_qkx2_quants and make_qkx3_quants in the
functions quantize_row_*, the layouts are those of block_q3_K, block_q4_K, block_q5_K and block_q6_K.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

SUPER_BLOCK = 256
"""Weights that share one fp16 scale; ggml's QK_K."""

Table = NDArray[np.int64]

_F = np.float32


@dataclass(frozen=True)
class Trials:
    """The inverse scales that `_search_affine` tries: (highest + first + step * i) / range, for i of 0 to last."""

    first: np.float32
    step: np.float32
    last: int


@dataclass(frozen=True)
class Layout:
    """Where a super-block's levels go. A vector is 16 of its weights; the numbers below count vectors.

    The low bits of several vectors' levels share a byte, `low_bits` each: a row of `low` lists these vectors, and the
    rows are in the order of the bytes. What is above is packed tighter: in `high` in the same way, `high_bits` each.
    """

    size: int
    low_at: int
    low: Table
    high_at: int
    high: Table
    high_bits: int
    low_bits: int = 4


@dataclass(frozen=True)
class BlockType:
    """What tells the types apart: weights per block, the levels and scales they can have, what the search tries.

    The affine types have `plain` trials, and `weighted` ones with an importance matrix; those of the symmetric types
    are always the same.
    """

    block: int
    lowest: int
    highest: int
    layout: Layout
    plain: Trials | None = None
    weighted: Trials | None = None
    lowest_scale: int = 0
    highest_scale: int = 63


def _table(rows: Sequence[Sequence[int]], width: int) -> Table:
    return np.array(rows, dtype=np.int64).reshape(-1, width)


_NEIGHBOURS = _table([(4 * g + h, 4 * g + h + 2) for g in range(4) for h in range(2)], 2)
_HIGH_BITS = _table([[2 * i + h for i in range(8)] for h in range(2)], 8)
_WEIGHTED = Trials(_F(-0.9), _F(0.05), 36)

TYPES = {
    GGMLQuantizationType.Q4_K: BlockType(
        block=32,
        lowest=0,
        highest=15,
        layout=Layout(144, low_at=16, low=_NEIGHBOURS, high_at=0, high=_table([], 1), high_bits=0),
        plain=Trials(_F(-1), _F(0.1), 20),
        weighted=_WEIGHTED,
    ),
    GGMLQuantizationType.Q5_K: BlockType(
        block=32,
        lowest=0,
        highest=31,
        layout=Layout(
            176,
            low_at=48,
            low=_NEIGHBOURS,
            high_at=16,
            high=_HIGH_BITS,
            high_bits=1,
        ),
        plain=Trials(_F(-0.5), _F(0.1), 15),
        weighted=_WEIGHTED,
    ),
    GGMLQuantizationType.Q6_K: BlockType(
        block=16,
        lowest=-32,
        highest=31,
        layout=Layout(
            210,
            low_at=0,
            low=_table([(8 * g + h, 8 * g + h + 4) for g in range(2) for h in range(4)], 2),
            high_at=128,
            high=_table([[8 * g + 2 * i + h for i in range(4)] for g in range(2) for h in range(2)], 4),
            high_bits=2,
        ),
        lowest_scale=-128,
        highest_scale=127,
    ),
}
"""The types that the kernels search scales for; ggml's types for rows of whole super-blocks."""

GRIDS = TYPES | {
    GGMLQuantizationType.Q3_K: BlockType(
        block=16,
        lowest=-4,
        highest=3,
        layout=Layout(
            110,
            low_at=32,
            low=_table([[8 * g + 2 * i + h for i in range(4)] for g in range(2) for h in range(2)], 4),
            high_at=0,
            high=_HIGH_BITS,
            high_bits=1,
            low_bits=2,
        ),
        lowest_scale=-32,
        highest_scale=31,
    ),
}
"""The types whose grids are known, see `grid`: Q3_K's scales are searched in C."""
