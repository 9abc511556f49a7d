"""ggml blocks to float32 rows, with ggml's own code: what llama.cpp takes the weights to be."""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from weblab_local.llama import compatibility, ggml
from weblab_local.llama.structures import TypeTraits


@cache
def _traits(ggml_type: GGMLQuantizationType) -> Any:
    compatibility.require_fit(compatibility.TYPES)
    get = ggml.function("ggml_get_type_traits", ctypes.POINTER(TypeTraits), ctypes.c_int)
    return get(ggml_type).contents


def dequantize_rows(blocks: NDArray[np.uint8], ggml_type: GGMLQuantizationType) -> NDArray[np.float32]:
    """The weights in `blocks` (n_rows, bytes per row) of `ggml_type`: (n_rows, n_columns), float32.

    The bytes per row must be whole blocks. C does it, without the GIL.
    """
    if ggml_type == GGMLQuantizationType.F32:
        return np.ascontiguousarray(blocks).view(np.float32)
    traits = _traits(ggml_type)
    blocks = np.ascontiguousarray(blocks)
    n_rows, row_bytes = blocks.shape
    rows = np.empty((n_rows, row_bytes // traits.type_size * traits.block_size), np.float32)
    traits.to_float(blocks.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def block_size(ggml_type: GGMLQuantizationType) -> int:
    """Weights in one block of `ggml_type`."""
    return int(_traits(ggml_type).block_size)
