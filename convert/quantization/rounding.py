"""Levels and scales of a super-block for the error that a quadratic form measures, sixteen rows at a time.

For a row's error e in these 256 columns, that is e S e^T, and S = F F^T with F upper triangular. Levels are chosen
column by column, each making up for those before it (Babai's nearest plane, which is GPTQ's rule). Then, block by
block: scale and minimum are set to the best there are for these levels, and each level to the best for all others.
Every step lowers the error or leaves it. A row does not depend on the other fifteen: see `lanes`.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.quantization import lanes
from convert.quantization.block_types import GRIDS, SUPER_BLOCK
from convert.quantization.grid import Grid
from convert.quantization.kernels import compiled
from convert.quantization.lanes import Lanes, all_true, equal, floor, fused, load, load_splat, rint, splat, store, where

LANES = lanes.COUNT

SWEEPS = 3
"""How often scales and levels are set anew; more change little."""

Floats = NDArray[np.float32]
Columns = NDArray[np.int64]

_F = np.float32
_ZERO, _ONE, _TWO = _F(0), _F(1), _F(2)
_SINGULAR = _F(1e-5)
_BLOCKS = 16


@dataclass(frozen=True)
class QuadraticForm:
    """S = F F^T, and what follows from F."""

    matrix: Floats
    """S: float32 (256, 256)."""
    shares: Floats
    """What each column makes up for of the errors before it, in rows: float32 (256, 256)."""
    importance: Floats
    """What a column's error counts once the later ones have made up for it: float32 (256,)."""

    @classmethod
    def of(cls, factor: Floats, matrix: Floats) -> "QuadraticForm":
        """That of F, and S."""
        diagonal = factor.diagonal()
        return cls(matrix, np.ascontiguousarray((factor / diagonal).T), np.square(diagonal))


def round_super_block(
    rows: Floats, ggml_type: GGMLQuantizationType, grid: Grid, error: QuadraticForm
) -> tuple[Grid, Floats]:
    """The grid with better scales, and the values on it that `rows` (n_rows, 256) are rounded to.

    `grid` is where the search for scales begins.
    """
    kind = GRIDS[ggml_type]
    n_blocks = SUPER_BLOCK // kind.block
    in_blocks = error.matrix.reshape(SUPER_BLOCK, n_blocks, kind.block)
    totals = in_blocks.reshape(n_blocks, kind.block, n_blocks, kind.block).sum(axis=(1, 3)).diagonal()
    scales, minima = grid.scales.copy(), grid.minima.copy()
    values = np.empty(rows.shape, _F)
    _round(
        np.ascontiguousarray(rows),
        np.ascontiguousarray(in_blocks.transpose(1, 0, 2)).reshape(-1),
        error.shares.reshape(-1),
        totals.copy(),
        grid.units[:, 0].copy(),
        grid.minimum_units[:, 0].copy(),
        scales,
        minima,
        kind.block,
        _F(kind.lowest),
        _F(kind.highest),
        _F(kind.lowest_scale),
        _F(kind.highest_scale),
        SWEEPS,
        values,
    )
    return Grid(grid.units, grid.minimum_units, scales, minima, grid.block, grid.lowest, grid.highest), values


@compiled
def _within(value: Lanes, lowest: Lanes, highest: Lanes) -> Lanes:
    value = where(value < highest, value, highest)
    return where(value > lowest, value, lowest)


@compiled
def _dot(weights: Floats, first: int, tile: Floats, start: int, stop: int) -> Lanes:
    """The sum of weights[first + i] * the tile's column i, for i from `start` to `stop`, a multiple of four apart."""
    one, two, three, four = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
    for i in range(start, stop, 4):
        one = fused(load_splat(weights, first + i), load(tile, i * LANES), one)
        two = fused(load_splat(weights, first + i + 1), load(tile, (i + 1) * LANES), two)
        three = fused(load_splat(weights, first + i + 2), load(tile, (i + 2) * LANES), three)
        four = fused(load_splat(weights, first + i + 3), load(tile, (i + 3) * LANES), four)
    return (one + two) + (three + four)


@compiled
def _add_products(
    weights: Floats,
    start: int,
    width: int,
    tile: Floats,
    columns: Columns,
    first_column: int,
    last_column: int,
    sums: Floats,
    first: int,
    last: int,
) -> None:
    """To each of the sums from `first` to `last` its row of `weights` times columns[first_column:last_column].

    These are columns of the tile. Row j begins at start + j * width. Four rows at a time, into which their number
    divides: what is loaded of the tile is multiplied four times.
    """
    for j in range(first, last, 4):
        row = start + j * width
        one, two, three, four = (
            load(sums, j * LANES),
            load(sums, (j + 1) * LANES),
            load(sums, (j + 2) * LANES),
            load(sums, (j + 3) * LANES),
        )
        for number in range(first_column, last_column):
            i = columns[number]
            column = load(tile, i * LANES)
            one = fused(load_splat(weights, row + i), column, one)
            two = fused(load_splat(weights, row + width + i), column, two)
            three = fused(load_splat(weights, row + 2 * width + i), column, three)
            four = fused(load_splat(weights, row + 3 * width + i), column, four)
        store(sums, j * LANES, one)
        store(sums, (j + 1) * LANES, two)
        store(sums, (j + 2) * LANES, three)
        store(sums, (j + 3) * LANES, four)


@compiled
def _turn(values: Floats, start: int, tile: Floats) -> None:
    """Sixteen rows from `start` on as columns of lanes; beyond the end the last one again."""
    for lane in range(LANES):
        row = values[min(start + lane, len(values) - 1)]
        for i in range(len(row)):
            tile[i * LANES + lane] = row[i]


@compiled
def _turn_back(tile: Floats, start: int, values: Floats) -> None:
    for lane in range(min(LANES, len(values) - start)):
        row = values[start + lane]
        for i in range(len(row)):
            row[i] = tile[i * LANES + lane]


@compiled
def _round(
    rows: Floats,
    form: Floats,
    shares: Floats,
    totals: Floats,
    units: Floats,
    minimum_units: Floats,
    scales: Floats,
    minima: Floats,
    block: int,
    lowest: np.float32,
    highest: np.float32,
    lowest_scale: np.float32,
    highest_scale: np.float32,
    sweeps: int,
    values: Floats,
) -> None:
    """Fill in `scales`, `minima` and `values`. `form` is S block by block, each (256, block)."""
    n = SUPER_BLOCK
    x, levels, errors, moves, targets, slopes = (
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
    )
    scale, minimum = np.empty(_BLOCKS * LANES, _F), np.empty(_BLOCKS * LANES, _F)
    all_columns, moved = np.arange(n), np.empty(block, np.int64)
    unit_of, minimum_unit_of = np.empty(LANES, _F), np.empty(LANES, _F)
    zero, bottom, top = splat(_ZERO), splat(lowest), splat(highest)
    for start in range(0, len(rows), LANES):
        _turn(rows, start, x)
        _turn(scales, start, scale)
        _turn(minima, start, minimum)
        for lane in range(LANES):
            row = min(start + lane, len(rows) - 1)
            unit_of[lane], minimum_unit_of[lane] = units[row], minimum_units[row]
        unit, minimum_unit = load(unit_of, 0), load(minimum_unit_of, 0)

        targets[:] = x
        errors[:] = _ZERO
        for first in range(0, n, block):
            _add_products(shares, 0, n, errors, all_columns, 0, first, targets, first, first + block)
            step = unit * load(scale, first // block * LANES)
            offset = minimum_unit * load(minimum, first // block * LANES)
            for i in range(first, first + block):
                wanted = load(targets, i * LANES) + _dot(shares, i * n, errors, first, first + block)
                level = _within(rint((wanted + offset) / step), bottom, top)
                level = where(equal(step, zero), zero, level)
                store(levels, i * LANES, level)
                store(errors, i * LANES, load(x, i * LANES) - (step * level - offset))

        slopes[:] = _ZERO
        for first in range(0, n, block):
            _add_products(form, n * first - first, block, errors, all_columns, first, first + block, slopes, 0, n)
        for _ in range(sweeps):
            for first in range(0, n, block):
                own = n * first - first  # where the block's columns of S begin, by columns of the super-block
                _refit(
                    form,
                    own,
                    totals[first // block],
                    unit,
                    minimum_unit,
                    scale,
                    minimum,
                    first,
                    block,
                    lowest_scale,
                    highest_scale,
                    levels,
                    slopes,
                    all_columns,
                    moves,
                )
                step = unit * load(scale, first // block * LANES)
                n_moved = 0
                for i in range(first, first + block):
                    level, row = load(levels, i * LANES), own + i * block
                    slope = load(slopes, i * LANES) + _dot(form, row, moves, first, first + block)
                    better = _within(level + rint(slope / (splat(form[row + i]) * step)), bottom, top)
                    better = where(equal(step, zero), level, better)
                    move = load(moves, i * LANES) - (better - level) * step
                    store(levels, i * LANES, better)
                    store(moves, i * LANES, move)
                    if not all_true(equal(move, zero)):
                        moved[n_moved] = i
                        n_moved += 1
                _add_products(form, own, block, moves, moved, 0, n_moved, slopes, 0, n)

        for i in range(n):
            step = unit * load(scale, i // block * LANES)
            offset = minimum_unit * load(minimum, i // block * LANES)
            store(x, i * LANES, step * load(levels, i * LANES) - offset)
        _turn_back(x, start, values)
        _turn_back(scale, start, scales)
        _turn_back(minimum, start, minima)


@compiled
def _refit(
    form: Floats,
    own: int,
    total: np.float32,
    unit: Lanes,
    minimum_unit: Lanes,
    scale: Floats,
    minimum: Floats,
    first: int,
    block: int,
    lowest_scale: np.float32,
    highest_scale: np.float32,
    levels: Floats,
    slopes: Floats,
    all_columns: Columns,
    moves: Floats,
) -> None:
    """Scale and minimum of the block from column `first` on, for its levels; `moves`: by what that changes errors."""
    number, stop = first // block, first + block
    zero, two = splat(_ZERO), splat(_TWO)
    for i in range(first, stop):
        store(moves, i * LANES, zero)
    _add_products(form, own, block, levels, all_columns, first, stop, moves, first, stop)
    l_l, l_1, l_g, sum_g = zero, zero, zero, zero
    for i in range(first, stop):
        level, slope, product = load(levels, i * LANES), load(slopes, i * LANES), load(moves, i * LANES)
        l_l = fused(level, product, l_l)
        l_1 = l_1 + product
        l_g = fused(level, slope, l_g)
        sum_g = sum_g + slope
    a, b, c = unit * unit * l_l, zero - unit * minimum_unit * l_1, minimum_unit * minimum_unit * splat(total)
    g, h = unit * l_g, zero - minimum_unit * sum_g
    determinant = a * c - b * b
    both = determinant > splat(_SINGULAR) * (a * c)
    p = where(both, (c * g - b * h) / determinant, g / a)
    z = where(both, (a * h - b * g) / determinant, zero)
    old_scale, old_minimum = load(scale, number * LANES), load(minimum, number * LANES)
    low_scale, low_minimum = floor(old_scale + p), floor(old_minimum + z)
    best, best_scale, best_minimum = zero, old_scale, old_minimum
    for candidate in range(4):
        new_scale = _within(low_scale + splat(_F(candidate % 2)), splat(lowest_scale), splat(highest_scale))
        new_minimum = _within(low_minimum + splat(_F(candidate // 2)), zero, splat(highest_scale))
        p, z = new_scale - old_scale, new_minimum - old_minimum
        gain = p * (two * g - p * a) + z * (two * h - z * c) - two * (p * (z * b))
        better = (gain > best) & (a > zero)
        best = where(better, gain, best)
        best_scale = where(better, new_scale, best_scale)
        best_minimum = where(better, new_minimum, best_minimum)
    store(scale, number * LANES, best_scale)
    store(minimum, number * LANES, best_minimum)
    p, z = unit * (best_scale - old_scale), minimum_unit * (best_minimum - old_minimum)
    for i in range(first, stop):
        store(moves, i * LANES, z - p * load(levels, i * LANES))
