"""Q4_K, Q5_K and Q6_K as in `ggml-quants.c`, sixteen blocks at a time: the same bytes, six to eight times faster.

Every block of 16 or 32 weights is quantized by trying scales and keeping the one with the least error; in C that is
one long chain of additions per block. Blocks do not depend on each other, so the same steps are done here in each of
16 lanes (see `lanes`): the same float32 operations in the same order, hence the same bytes. Which function mirrors
which:

    _search_affine      make_qkx2_quants; make_qkx3_quants, which does the same with an importance matrix
    _search_symmetric   make_qx_quants, rmse_type 1
    _round_scales       make_qp_quants
    _write_levels       the last loops of quantize_row_q4_K_ref, q5_K_ref, q6_K_ref and their _impl
    quantize            what is left of those

Where the bytes could differ is known: `nearest_int` works up to 2^22 only and gives garbage beyond, block types keep
what the search left behind where a scale is rounded to 0, NaN compares with nothing. A super-block where one of these
happens, or where it cannot be ruled out, is reported as doubtful, for C to do again. And a llama.cpp that was compiled
with fused multiply-add rounds differently everywhere: `quantize.py` compares before it trusts these kernels.

Longer than other files here because Numba keeps compiled code by the file it is in, and does not see when what it calls
in another file changes: kernels that call each other stay together, and `lanes` goes into the key by its checksum.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.quantization import lanes
from convert.quantization.block_types import SUPER_BLOCK, TYPES, BlockType, Table, Trials
from convert.quantization.lanes import (
    Lanes,
    absolute,
    all_true,
    equal,
    floor,
    load,
    rint,
    splat,
    sqrt,
    store,
    store_bytes,
    where,
)

LANES = lanes.COUNT

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]

_F = np.float32
_ZERO, _ONE, _TWO = _F(0), _F(1), _F(2)
_NEAREST_INT_LIMIT = _F(4194303)
_MAGIC = _F(12582912)
_GROUP_MAX_EPS = _F(1e-15)
_TENTH = _F(0.1)
_SUPER_BLOCK = _F(SUPER_BLOCK)


def quantize(
    rows: Floats, ggml_type: GGMLQuantizationType, importance: Floats | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Quantize contiguous `rows` (n_rows, n_columns), the columns whole super-blocks, to one of TYPES.

    `importance` (n_columns) weighs the columns. Returns the blocks (n_super_blocks, bytes) and the indexes of the
    doubtful ones among them, which are not to be used.
    """
    kind = TYPES[ggml_type]
    n_super_blocks = rows.size // SUPER_BLOCK
    blocks = np.empty((n_super_blocks, kind.layout.size), np.uint8)
    if n_super_blocks * SUPER_BLOCK < LANES * kind.block:
        return blocks, np.arange(n_super_blocks)
    trusted = np.ones(n_super_blocks, np.bool_)
    weights = np.empty(0, _F) if importance is None else importance
    with np.errstate(all="ignore"):
        trials = kind.plain if importance is None else kind.weighted
        if trials is None:
            steps, offsets = _symmetric_scales(kind, rows, weights, blocks, trusted)
        else:
            steps, offsets = _affine_scales(kind, trials, rows, weights, blocks, trusted)
        trusted &= (np.isfinite(steps) & (steps != 0) & np.isfinite(offsets)).all(axis=1)
    trusted &= write_levels(kind, rows, steps, offsets, blocks)
    return blocks, np.flatnonzero(~trusted)


def write_levels(kind: BlockType, rows: Floats, steps: Floats, offsets: Floats, blocks: Bytes) -> Bools:
    """Write the level of every weight into `blocks` (n_super_blocks, bytes), for given steps and offsets of the blocks.

    `steps` and `offsets` are (n_super_blocks, blocks in each). Which super-blocks can be relied on: (n_super_blocks,).
    """
    trusted = np.ones(len(blocks), np.bool_)
    layout = kind.layout
    _write_levels(
        rows.reshape(-1),
        steps,
        offsets,
        kind.block,
        _F(kind.lowest),
        _F(kind.highest),
        blocks,
        layout.low_at,
        layout.low,
        (1 << layout.low_bits * np.arange(layout.low.shape[1])).astype(_F),
        layout.high_at,
        layout.high,
        (1 << layout.high_bits * np.arange(layout.high.shape[1])).astype(_F),
        trusted,
    )
    return trusted


def are_cached(ggml_type: GGMLQuantizationType) -> bool:
    """Whether this machine has compiled the kernels for this type before."""
    search: Any = _search_affine if TYPES[ggml_type].plain else _search_symmetric
    return any(Path(search.stats.cache_path).glob(f"*{search.__name__}{_LANES_VERSION}-*.nbc"))


def _affine_scales(
    kind: BlockType, trials: Trials, rows: Floats, importance: Floats, blocks: Bytes, trusted: Bools
) -> tuple[Floats, Floats]:
    """Write d, dmin, the 6-bit scales and minima of Q4_K and Q5_K; each block's step and offset (n_super_blocks, 8)."""
    scales, minima, sums = np.empty((3, len(blocks), SUPER_BLOCK // kind.block), _F)
    _search_affine(
        rows.reshape(-1),
        importance,
        rows.shape[1],
        _F(kind.highest),
        trials.first,
        trials.step,
        trials.last,
        scales.reshape(-1),
        minima.reshape(-1),
        sums.reshape(-1),
        trusted,
    )
    trusted &= ((scales >= 0) & (minima >= 0)).all(axis=1)
    if importance.size:
        d, scale_levels = _weighted_6_bits(scales, sums, trusted)
        d_min, minimum_levels = _weighted_6_bits(minima, sums, trusted)
    else:
        d, scale_levels = _plain_6_bits(scales)
        d_min, minimum_levels = _plain_6_bits(minima)
    blocks[:, 0:4] = np.stack([d, d_min], axis=1).view(np.uint8)
    pack_6_bits(scale_levels, minimum_levels, blocks)
    return d.astype(_F)[:, None] * scale_levels, d_min.astype(_F)[:, None] * minimum_levels


def pack_6_bits(scales: Bytes, minima: Bytes, blocks: Bytes) -> None:
    """Write the 6-bit scales and minima (n_super_blocks, 8) of Q4_K and Q5_K into their `blocks`."""
    for at, levels in ((4, scales), (8, minima)):
        blocks[:, at : at + 4] = levels[:, :4] | (levels[:, 4:] >> 4) << 6
    blocks[:, 12:16] = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4


def _plain_6_bits(values: Floats) -> tuple[NDArray[np.float16], Bytes]:
    """The fp16 unit of each super-block's scales (or minima), and the scales in that unit, 0 to 63."""
    largest = np.maximum(values.max(axis=1, keepdims=True), _ZERO)
    inverse = np.where(largest > 0, _F(63) / largest, _ZERO)
    levels = np.minimum(np.rint(inverse * values), _F(63)).astype(np.uint8)
    return (largest[:, 0] / _F(63)).astype(np.float16), levels


def _weighted_6_bits(values: Floats, weights: Floats, trusted: Bools) -> tuple[NDArray[np.float16], Bytes]:
    units = np.empty(len(values), _F)
    levels = np.empty(values.shape, np.uint8)
    _round_scales(values, weights, _F(63), units, levels, trusted)
    return units.astype(np.float16), levels


def _symmetric_scales(
    kind: BlockType, rows: Floats, importance: Floats, blocks: Bytes, trusted: Bools
) -> tuple[Floats, Floats]:
    """Write d and the 8-bit scales of Q6_K; each block's step and offset (n_super_blocks, 16)."""
    scales = np.empty((len(blocks), SUPER_BLOCK // kind.block), _F)
    _search_symmetric(rows.reshape(-1), importance, rows.shape[1], _F(-kind.lowest), scales.reshape(-1), trusted)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1, keepdims=True), axis=1)
    trusted &= np.abs(largest[:, 0]) >= _GROUP_MAX_EPS
    inverse = _F(-128) / largest
    d = (_ONE / inverse[:, 0]).astype(np.float16)
    levels = np.minimum(np.rint(inverse * scales), _F(127)).astype(np.int8)
    blocks[:, 192:208] = levels.view(np.uint8)
    blocks[:, 208:210] = d[:, None].view(np.uint8)
    return d.astype(_F)[:, None] * levels, np.zeros(scales.shape, _F)


_Function = TypeVar("_Function", bound=Callable[..., Any])

_LANES_VERSION = f"-{zlib.crc32(Path(lanes.__file__).read_bytes()):08x}"


def compiled(function: _Function) -> _Function:
    """Compile for this processor on the first call, keep the result on disk, run without the GIL.

    Numba makes a cached function anew when this file changes, but does not see `lanes`: that goes into the name.
    """
    function.__qualname__ += _LANES_VERSION
    result: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return result  # type: ignore[no-any-return]  # it is called like the function


@compiled
def _level(value: Lanes, lowest: Lanes, highest: Lanes) -> Lanes:
    level = rint(value)
    level = where(level < highest, level, highest)
    return where(level > lowest, level, lowest)


@compiled
def _load_tile(x: Floats, first: int, n: int, tile: Floats) -> None:
    """Blocks `first` to `first + 15` of n weights, turned: the blocks' element i lies in the lanes at 16 * i."""
    for lane in range(LANES):
        block = x[(first + lane) * n : (first + lane + 1) * n]
        for i in range(n):
            tile[i * LANES + lane] = block[i]


@compiled
def _load_importance(importance: Floats, n_columns: int, first: int, n: int, tile: Floats) -> None:
    """The columns' weights of these blocks, turned in the same way."""
    for lane in range(LANES):
        column = (first + lane) * n % n_columns
        block = importance[column : column + n]
        for i in range(n):
            tile[i * LANES + lane] = block[i]


@compiled
def _weigh_plain(x: Floats, n: int, weights: Floats) -> None:
    """Each weight counts as much as its own size and the block's root mean square."""
    total = splat(_ZERO)
    for i in range(n):
        value = load(x, i * LANES)
        total = total + value * value
    mean = sqrt(total / splat(_F(n)))
    for i in range(n):
        store(weights, i * LANES, mean + absolute(load(x, i * LANES)))


@compiled
def _weigh_by_importance(x: Floats, n: int, variance: Lanes, weights: Floats) -> None:
    for i in range(n):
        value = load(x, i * LANES)
        store(weights, i * LANES, load(weights, i * LANES) * sqrt(variance + value * value))


@compiled
def _double_mean_square(super_block: Floats) -> np.float32:
    total = _ZERO
    for value in super_block:
        total += value * value
    return _TWO * total / _SUPER_BLOCK


@compiled
def _search_affine(
    x: Floats,
    importance: Floats,
    n_columns: int,
    highest: np.float32,
    first: np.float32,
    step: np.float32,
    last: int,
    scales: Floats,
    minima: Floats,
    sums: Floats,
    trusted: Bools,
) -> None:
    """The scale and minimum of every block of 32: x is about scale * level - minimum. `sums`: the blocks' weights."""
    n = 32
    per_super_block = SUPER_BLOCK // n
    tile = np.empty(n * LANES, _F)
    weights = np.empty(n * LANES, _F)
    variances = np.empty(LANES, _F)
    zero, top, limit = splat(_ZERO), splat(highest), splat(_NEAREST_INT_LIMIT)
    n_blocks = len(scales)
    for start in range(0, n_blocks, LANES):
        base = min(start, n_blocks - LANES)
        _load_tile(x, base, n, tile)
        if len(importance):
            _load_importance(importance, n_columns, base, n, weights)
            for lane in range(0, LANES, per_super_block):
                begin = (base + lane) * n
                variances[lane : lane + per_super_block] = _double_mean_square(x[begin : begin + SUPER_BLOCK])
            _weigh_by_importance(tile, n, load(variances, 0), weights)
        else:
            _weigh_plain(tile, n, weights)

        low = load(tile, 0)
        high = low
        sum_w = load(weights, 0)
        sum_x = sum_w * low
        for i in range(1, n):
            value, weight = load(tile, i * LANES), load(weights, i * LANES)
            low = where(value < low, value, low)
            high = where(value > high, value, high)
            sum_w = sum_w + weight
            sum_x = sum_x + weight * value
        lowest = low
        low = where(low > zero, zero, low)
        inverse = top / (high - low)
        scale = splat(_ONE) / inverse
        best_error = zero
        for i in range(n):
            value = load(tile, i * LANES)
            difference = scale * _level(inverse * (value - low), zero, top) + low - value
            best_error = best_error + load(weights, i * LANES) * (difference * difference)

        safe = high > low
        for trial in range(last + 1):
            inverse = splat(first + step * _F(trial) + highest) / (high - low)
            safe = safe & (absolute(inverse * (high - low)) < limit) & (absolute(inverse * (lowest - low)) < limit)
            sum_l, sum_l2, sum_xl = zero, zero, zero
            for i in range(n):
                value = load(tile, i * LANES)
                level = _level(inverse * (value - low), zero, top)
                weighted = load(weights, i * LANES) * level
                sum_l = sum_l + weighted
                sum_l2 = sum_l2 + weighted * level
                sum_xl = sum_xl + weighted * value
            determinant = sum_w * sum_l2 - sum_l * sum_l
            this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            positive = this_low > zero
            this_scale = where(positive, sum_xl / sum_l2, this_scale)
            this_low = where(positive, zero, this_low)
            error = zero
            for i in range(n):
                value = load(tile, i * LANES)
                difference = this_scale * _level(inverse * (value - low), zero, top) + this_low - value
                error = error + load(weights, i * LANES) * (difference * difference)
            better = (determinant > zero) & (error < best_error)
            best_error = where(better, error, best_error)
            scale = where(better, this_scale, scale)
            low = where(better, this_low, low)

        store(scales, base, scale)
        store(minima, base, zero - low)
        store(sums, base, sum_w)
        if not all_true(safe):
            trusted[base // per_super_block : (base + LANES) // per_super_block] = False


@compiled
def _search_symmetric(
    x: Floats,
    importance: Floats,
    n_columns: int,
    highest: np.float32,
    scales: Floats,
    trusted: Bools,
) -> None:
    """The scale of every block of 16, which has the sign that gives its largest weight the level -highest."""
    n = 16
    tile = np.empty(n * LANES, _F)
    weights = np.empty(n * LANES, _F)
    zero, bottom, top = splat(_ZERO), splat(-highest), splat(highest - _ONE)
    for base in range(0, len(scales), LANES):
        _load_tile(x, base, n, tile)
        if len(importance):
            _load_importance(importance, n_columns, base, n, weights)
        else:
            for i in range(n):
                value = load(tile, i * LANES)
                store(weights, i * LANES, value * value)

        largest, largest_size = zero, zero
        for i in range(n):
            value = load(tile, i * LANES)
            size = absolute(value)
            largest = where(size > largest_size, value, largest)
            largest_size = where(size > largest_size, size, largest_size)
        scale, best = zero, zero
        safe = largest_size > splat(_GROUP_MAX_EPS)
        for trial in range(-10, 10):
            if trial == 0:
                continue
            inverse = (bottom if trial == -10 else splat(-(highest + _TENTH * _F(trial)))) / largest
            sum_xl, sum_l2 = zero, zero
            for i in range(n):
                value, weight = load(tile, i * LANES), load(weights, i * LANES)
                level = _level(inverse * value, bottom, top)
                sum_xl = sum_xl + weight * value * level
                sum_l2 = sum_l2 + weight * level * level
            this_scale = where(equal(sum_l2, zero), zero, sum_xl / sum_l2)
            if trial == -10:
                scale = this_scale
                best = scale * sum_xl
            else:
                better = (sum_l2 > zero) & (sum_xl * sum_xl > best * sum_l2)
                scale = where(better, this_scale, scale)
                best = where(better, scale * sum_xl, best)

        store(scales, base, scale)
        if not all_true(safe):
            trusted[base // LANES] = False


@compiled
def _nearest(value: np.float32) -> np.float32:
    return value + _MAGIC - _MAGIC


@compiled
def _round_scales(
    values: Floats, weights: Floats, highest: np.float32, units: Floats, levels: Bytes, trusted: Bools
) -> None:
    """Each row of `values` as unit * level, with the least weighted error; values are not negative."""
    n = values.shape[1]
    rounded = np.empty(n, _F)
    for row in range(len(values)):
        x, w = values[row], weights[row]
        largest = _ZERO
        for i in range(n):
            largest = max(largest, x[i])
        units[row] = _ZERO
        levels[row] = 0
        if not largest >= _GROUP_MAX_EPS:
            continue
        inverse = highest / largest
        best_error = _ZERO
        for trial in range(-5, 5):
            if trial == 0:
                continue
            this_inverse = inverse if trial == -5 else (_TENTH * _F(trial) + highest) / largest
            unit = _ONE / this_inverse
            error = _ZERO
            for i in range(n):
                difference = x[i] - unit * min(highest, _nearest(this_inverse * x[i]))
                error += w[i] * difference * difference
            if trial == -5:
                best_error = error
            elif error < best_error:
                best_error = error
                inverse = this_inverse
        sum_xl, sum_l2 = _ZERO, _ZERO
        for i in range(n):
            level = min(highest, _nearest(inverse * x[i]))
            rounded[i] = level
            sum_xl += w[i] * x[i] * level
            sum_l2 += w[i] * level * level
        for _ in range(5):
            changed = False
            for i in range(n):
                this_xl = sum_xl - w[i] * x[i] * rounded[i]
                this_l2 = sum_l2 - w[i] * rounded[i] * rounded[i]
                if this_xl > _ZERO and this_l2 > _ZERO:
                    exact = x[i] * this_l2 / this_xl
                    if not exact < _NEAREST_INT_LIMIT:
                        trusted[row] = False
                    level = min(highest, _nearest(exact))
                    if level != rounded[i]:
                        this_xl += w[i] * x[i] * level
                        this_l2 += w[i] * level * level
                        if this_xl * this_xl * sum_l2 > sum_xl * sum_xl * this_l2:
                            rounded[i] = level
                            sum_xl, sum_l2 = this_xl, this_l2
                            changed = True
            if not changed:
                break
        for i in range(n):
            levels[row, i] = np.uint8(rounded[i])
        if sum_l2 > _ZERO:
            units[row] = sum_xl / sum_l2


@compiled
def _write_levels(
    x: Floats,
    steps: Floats,
    offsets: Floats,
    n: int,
    lowest: np.float32,
    highest: np.float32,
    blocks: Bytes,
    low_at: int,
    low: Table,
    low_units: Floats,
    high_at: int,
    high: Table,
    high_units: Floats,
    trusted: Bools,
) -> None:
    """Write each weight's level, (x + offset) / step to the nearest whole number, where the layout wants its bits.

    A level is split, and parts of several levels are joined to a byte, in float32: exact for such small numbers.
    """
    n_vectors = SUPER_BLOCK // LANES
    lower, upper = np.empty(SUPER_BLOCK, _F), np.empty(SUPER_BLOCK, _F)
    bottom, top, limit = splat(lowest), splat(highest), splat(_NEAREST_INT_LIMIT)
    above_low, inverse = splat(low_units[1]), splat(_ONE / low_units[1])
    all_bytes = blocks.reshape(-1)
    for index in range(len(blocks)):
        safe = bottom < top
        for vector in range(n_vectors):
            block = vector * LANES // n
            value = load(x, index * SUPER_BLOCK + vector * LANES)
            value = (value + splat(offsets[index, block])) / splat(steps[index, block])
            safe = safe & (absolute(value) < limit)
            level = _level(value, bottom, top) - bottom
            above = floor(level * inverse)
            store(lower, vector * LANES, level - above * above_low)
            store(upper, vector * LANES, above)
        start = index * blocks.shape[1]
        for row in range(len(low)):
            joined = splat(_ZERO)
            for i in range(low.shape[1]):
                joined = joined + load(lower, low[row, i] * LANES) * splat(low_units[i])
            store_bytes(all_bytes, start + low_at + row * LANES, joined)
        for row in range(len(high)):
            joined = splat(_ZERO)
            for i in range(high.shape[1]):
                joined = joined + load(upper, high[row, i] * LANES) * splat(high_units[i])
            store_bytes(all_bytes, start + high_at + row * LANES, joined)
        if not all_true(safe):
            trusted[index] = False
