"""Float32 rows to ggml blocks, with llama.cpp's own code: the same bytes as `llama_model_quantize` writes.

Only this module knows which implementation does the work.
"""

import ctypes
from functools import cache

import numpy as np
from gguf import GGMLQuantizationType, quant_shape_to_byte_shape
from numpy.typing import NDArray

from convert.errors import CheckpointError
from weblab_local import ggml

_FLOAT_P = ctypes.POINTER(ctypes.c_float)


@cache
def _quantize_init(ggml_type: GGMLQuantizationType) -> None:
    ggml.function("ggml_quantize_init", None, (ctypes.c_int,))(ggml_type)


def quantize_rows(
    rows: NDArray[np.float32], ggml_type: GGMLQuantizationType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize `rows` (n_rows, n_columns) to blocks of `ggml_type`: (n_rows, bytes per row), uint8.

    `importance` (n_columns) weighs the columns, as an importance matrix does. The columns must be whole blocks. C's
    `ggml_quantize_chunk` does it, without the GIL, so threads scale. Raises CheckpointError when a result is not
    finite: a block's scale is kept in fp16, which ends at 65504.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    n_rows, n_columns = rows.shape
    _quantize_init(ggml_type)
    blocks = np.empty(quant_shape_to_byte_shape(rows.shape, ggml_type), dtype=np.uint8)
    quantize_chunk = ggml.function(
        "ggml_quantize_chunk",
        ctypes.c_size_t,
        (ctypes.c_int, _FLOAT_P, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOAT_P),
    )
    written = quantize_chunk(
        ggml_type,
        rows.ctypes.data_as(_FLOAT_P),
        blocks.ctypes.data,
        0,
        n_rows,
        n_columns,
        None if importance is None else np.ascontiguousarray(importance, np.float32).ctypes.data_as(_FLOAT_P),
    )
    if written != blocks.nbytes:
        raise AssertionError(f"ggml_quantize_chunk wrote {written} bytes of {ggml_type.name}, not {blocks.nbytes}")
    validate = ggml.function("ggml_validate_row_data", ctypes.c_bool, (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t))
    if not validate(ggml_type, blocks.ctypes.data, blocks.nbytes):
        raise CheckpointError(f"its weights are too large for {ggml_type.name}, whose scales end at 65504")
    return blocks
