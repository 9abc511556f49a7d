"""Levels and scales of a super-block for the error that a quadratic form measures, sixteen rows at a time.

For a row's error e in these 256 columns, that is e S e^T, and S = F F^T with F upper triangular. Levels are chosen
column by column, each making up for those before it (Babai's nearest plane, which is GPTQ's rule). Then, by turns: each
block's scale and minimum are set to the best there are for these levels, and each level to the best for all others.
Every step lowers the error or leaves it. A row does not depend on the other fifteen: see `lanes`.
"""

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.quantization import lanes
from convert.quantization.block_types import GRIDS, SUPER_BLOCK
from convert.quantization.grid import Grid
from convert.quantization.kernels import compiled
from convert.quantization.lanes import Lanes, all_true, equal, floor, load, rint, splat, store, where

LANES = lanes.COUNT

SWEEPS = 4
"""How often scales and levels are set anew; more change little."""

Floats = NDArray[np.float32]

_F = np.float32
_ZERO, _ONE, _TWO = _F(0), _F(1), _F(2)
_SINGULAR = _F(1e-5)
_BLOCKS = 16


def round_super_block(rows: Floats, ggml_type: GGMLQuantizationType, grid: Grid, factor: Floats) -> tuple[Grid, Floats]:
    """The grid with better scales, and the values on it that `rows` (n_rows, 256) are rounded to.

    `grid` is where the search for scales begins; `factor` (256, 256) is F.
    """
    kind = GRIDS[ggml_type]
    form = np.ascontiguousarray(factor @ factor.T)
    shares = np.ascontiguousarray((factor / factor.diagonal()).T)
    scales, minima = grid.scales.copy(), grid.minima.copy()
    values = np.empty(rows.shape, _F)
    _round(
        np.ascontiguousarray(rows),
        form.reshape(-1),
        shares.reshape(-1),
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
        one = one + splat(weights[first + i]) * load(tile, i * LANES)
        two = two + splat(weights[first + i + 1]) * load(tile, (i + 1) * LANES)
        three = three + splat(weights[first + i + 2]) * load(tile, (i + 2) * LANES)
        four = four + splat(weights[first + i + 3]) * load(tile, (i + 3) * LANES)
    return (one + two) + (three + four)


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
    n = SUPER_BLOCK
    n_blocks = n // block
    x, levels, errors, slopes = (
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
        np.empty(n * LANES, _F),
    )
    scale, minimum = np.empty(_BLOCKS * LANES, _F), np.empty(_BLOCKS * LANES, _F)
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

        errors[:] = _ZERO
        for i in range(n):
            step = unit * load(scale, i // block * LANES)
            offset = minimum_unit * load(minimum, i // block * LANES)
            value = load(x, i * LANES)
            wanted = value + _dot(shares, i * n, errors, 0, (i + 3) // 4 * 4)
            level = _within(rint((wanted + offset) / step), bottom, top)
            level = where(equal(step, zero), zero, level)
            store(levels, i * LANES, level)
            store(errors, i * LANES, value - (step * level - offset))
        for i in range(n):
            store(slopes, i * LANES, _dot(form, i * n, errors, 0, n))

        for _ in range(sweeps):
            for number in range(n_blocks):
                _refit(
                    form,
                    unit,
                    minimum_unit,
                    scale,
                    minimum,
                    number,
                    block,
                    lowest_scale,
                    highest_scale,
                    levels,
                    slopes,
                    errors,
                )
            for i in range(n):
                step = unit * load(scale, i // block * LANES)
                level = load(levels, i * LANES)
                move = rint(load(slopes, i * LANES) / (splat(form[i * n + i]) * step))
                better = where(equal(step, zero), level, _within(level + move, bottom, top))
                if not all_true(equal(better, level)):
                    store(levels, i * LANES, better)
                    taken = (better - level) * step
                    for j in range(n):
                        store(slopes, j * LANES, load(slopes, j * LANES) - taken * splat(form[i * n + j]))

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
    unit: Lanes,
    minimum_unit: Lanes,
    scale: Floats,
    minimum: Floats,
    number: int,
    block: int,
    lowest_scale: np.float32,
    highest_scale: np.float32,
    levels: Floats,
    slopes: Floats,
    taken: Floats,
) -> None:
    """Scale and minimum of block `number`, with its levels as they are; the error's slopes follow."""
    n = SUPER_BLOCK
    first, stop = number * block, (number + 1) * block
    zero, two = splat(_ZERO), splat(_TWO)
    l_l, l_1, l_g, sum_g = zero, zero, zero, zero
    total = _ZERO
    for i in range(first, stop):
        level, slope = load(levels, i * LANES), load(slopes, i * LANES)
        product = _dot(form, i * n, levels, first, stop)
        l_l = l_l + level * product
        l_1 = l_1 + product
        l_g = l_g + level * slope
        sum_g = sum_g + slope
        for j in range(first, stop):
            total += form[i * n + j]
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
    if all_true(equal(best_scale, old_scale) & equal(best_minimum, old_minimum)):
        return
    store(scale, number * LANES, best_scale)
    store(minimum, number * LANES, best_minimum)
    p, z = unit * (best_scale - old_scale), minimum_unit * (best_minimum - old_minimum)
    for i in range(first, stop):
        store(taken, i * LANES, p * load(levels, i * LANES) - z)
    for j in range(n):
        store(slopes, j * LANES, load(slopes, j * LANES) - _dot(form, j * n, taken, first, stop))
