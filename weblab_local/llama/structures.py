"""ggml's structures, copied by hand from ggml.h and gguf.h; `compatibility` compares them with the library."""

import ctypes

from weblab_local.llama.ggml import POINTER, SIZE


class GgmlInit(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool))


class GgufInit(ctypes.Structure):
    """`struct gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", POINTER))


class TensorStart(ctypes.Structure):
    """The first members of `struct ggml_tensor`."""

    _fields_ = (("type", ctypes.c_int), ("buffer", POINTER))


class TypeTraits(ctypes.Structure):
    """The first members of `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", POINTER),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", SIZE),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, POINTER, POINTER, ctypes.c_int64)),
    )
