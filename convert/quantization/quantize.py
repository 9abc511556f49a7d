"""Float32 rows to ggml blocks: the same bytes as `llama_model_quantize` writes.

Only this module knows which implementation does the work: llama.cpp's C function, or for some types the kernels, which
give the same bytes sooner and leave to C what they cannot vouch for.
"""

import ctypes
import logging
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from gguf import GGML_QUANT_SIZES, QK_K, GGMLQuantizationType, quant_shape_to_byte_shape
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.quantization.block_types import TYPES
from weblab_local.llama import ggml

_FLOAT_P = ctypes.POINTER(ctypes.c_float)

_log = logging.getLogger(__name__)

Kernel = Callable[
    [NDArray[np.float32], GGMLQuantizationType, NDArray[np.float32] | None],
    tuple[NDArray[np.uint8], NDArray[np.intp]],
]
"""Rows, type and importance -> the blocks of the super-blocks, and the indexes of those that C has to do again."""


def prepare(ggml_types: Iterable[GGMLQuantizationType], say: Callable[[str], None]) -> None:
    """Choose the implementation for each quantized type of these; kernels are compiled now, which `say` announces."""
    quantized = [ggml_type for ggml_type in ggml_types if GGML_QUANT_SIZES[ggml_type][0] > 1]
    if any(map(_needs_compiling, quantized)):
        say("Compiling the quantization kernels for this processor: up to half a minute, once per machine.")
    for ggml_type in quantized:
        kernel_for(ggml_type)


def quantize_rows(
    rows: NDArray[np.float32], ggml_type: GGMLQuantizationType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize `rows` (n_rows, n_columns) to blocks of `ggml_type`: (n_rows, bytes per row), uint8.

    `importance` (n_columns) weighs the columns, as an importance matrix does. The columns must be whole blocks. Runs
    without the GIL, so threads scale. Raises CheckpointError when a result is not finite: a block's scale is kept in
    fp16, which ends at 65504.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
    kernel = kernel_for(ggml_type)
    blocks = quantize_in_c(rows, ggml_type, importance) if kernel is None else _run(kernel, rows, ggml_type, importance)
    validate = ggml.function("ggml_validate_row_data", ctypes.c_bool, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    if not validate(ggml_type, blocks.ctypes.data, blocks.nbytes):
        raise CheckpointError(f"its weights are too large for {ggml_type.name}, whose scales end at 65504")
    return blocks


def quantize_in_c(
    rows: NDArray[np.float32], ggml_type: GGMLQuantizationType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """`quantize_rows` by llama.cpp's `ggml_quantize_chunk`, for contiguous float32 and without the check at its end."""
    n_rows, n_columns = rows.shape
    _quantize_init(ggml_type)
    blocks = np.empty(quant_shape_to_byte_shape(rows.shape, ggml_type), dtype=np.uint8)
    quantize_chunk = ggml.function(
        "ggml_quantize_chunk",
        ctypes.c_size_t,
        ctypes.c_int,
        _FLOAT_P,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        _FLOAT_P,
    )
    written = quantize_chunk(
        ggml_type,
        rows.ctypes.data_as(_FLOAT_P),
        blocks.ctypes.data,
        0,
        n_rows,
        n_columns,
        None if importance is None else importance.ctypes.data_as(_FLOAT_P),
    )
    if written != blocks.nbytes:
        raise AssertionError(f"ggml_quantize_chunk wrote {written} bytes of {ggml_type.name}, not {blocks.nbytes}")
    return blocks


@cache
def _quantize_init(ggml_type: GGMLQuantizationType) -> None:
    ggml.function("ggml_quantize_init", None, ctypes.c_int)(ggml_type)


@cache
def kernel_for(ggml_type: GGMLQuantizationType) -> Kernel | None:
    """The kernel that makes this type here, or None for C; the log says why. Compiled and compared when it returns."""
    try:
        from convert.quantization import kernels

        if ggml_type not in TYPES:
            _log.info("%s: llama.cpp's C code, there is no kernel for it", ggml_type.name)
            return None
        same = _same_as_c(kernels.quantize, ggml_type)
    except Exception as error:  # whatever keeps Numba from working on this machine, C does the same
        _log.info("%s: llama.cpp's C code, the kernels do not work here: %s", ggml_type.name, error)
        return None
    if not same:
        _log.info("%s: llama.cpp's C code, which rounds differently here than the kernels", ggml_type.name)
        return None
    _log.info("%s: vectorised kernels", ggml_type.name)
    return kernels.quantize


def _needs_compiling(ggml_type: GGMLQuantizationType) -> bool:
    try:
        from convert.quantization import kernels
    except Exception:  # kernel_for says why
        return False
    return ggml_type in TYPES and not kernels.are_cached(ggml_type)


def _same_as_c(kernel: Kernel, ggml_type: GGMLQuantizationType) -> bool:
    """Whether `kernel` gives C's bytes for a sample; not so where llama.cpp was compiled with fused multiply-add."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((16, 1024), dtype=np.float32)
    return all(
        np.array_equal(_run(kernel, rows, ggml_type, importance), quantize_in_c(rows, ggml_type, importance))
        for importance in (None, random.random(1024, dtype=np.float32))
    )


def _run(
    kernel: Kernel, rows: NDArray[np.float32], ggml_type: GGMLQuantizationType, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    blocks, doubtful = kernel(rows, ggml_type, importance)
    n_columns = rows.shape[1]
    gaps = (np.diff(doubtful) != 1) | (doubtful[1:] % (n_columns // QK_K) == 0)
    for run in np.split(doubtful, np.flatnonzero(gaps) + 1) if doubtful.size else ():
        row, column = divmod(int(run[0]) * QK_K, n_columns)
        columns = slice(column, column + len(run) * QK_K)
        again = quantize_in_c(rows[row, None, columns], ggml_type, None if importance is None else importance[columns])
        blocks[run] = again.reshape(len(run), -1)
    return blocks.reshape(quant_shape_to_byte_shape(rows.shape, ggml_type))
