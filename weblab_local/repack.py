"""Which weights llama.cpp will rearrange for this processor (its buffer types CPU_REPACK, AMX and the like).

Whether it does depends on the processor, the build and the tensor's type and shape. So ggml is asked with the question
that llama.cpp asks while loading: does the device support a multiplication with such a tensor in such a buffer
(`weight_buft_supported` in llama-model-loader.cpp)?
"""

import ctypes
from collections.abc import Mapping
from typing import Any

from weblab_local import ggml
from weblab_local.footprint import row_bytes
from weblab_local.gguf_header import Header

_POINTER, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
_F32 = 0
_BATCH = 512
"""Columns of the other factor that llama.cpp asks with."""

_MATRICES = tuple(f"{name}.weight" for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down", "output"))
"""The tensors that are multiplied with; of the embedding, rows are looked up."""


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class _TensorStart(ctypes.Structure):
    """The first members of `struct ggml_tensor`."""

    _fields_ = (("type", ctypes.c_int), ("buffer", _POINTER))


def repacked(header: Header, cpu: int) -> Mapping[str, tuple[str, int]]:
    """The matrices that the CPU device `cpu` (ggml's handle) rearranges: the buffer's name, and the bytes there."""
    buffer_types = _extra_buffer_types(cpu)
    answers: dict[tuple[int, int, int], tuple[str, int] | None] = {}
    result = {}
    for name, tensor in header.tensors.items():
        if not name.endswith(_MATRICES):
            continue
        columns = header.hparam("feed_forward_length" if "ffn_down" in name else "embedding_length")
        key = (tensor.ggml_type, columns, tensor.nbytes // row_bytes(tensor.ggml_type, columns))
        if key not in answers:
            answers[key] = _first_that_takes(buffer_types, cpu, *key)
        if answer := answers[key]:
            result[name] = answer
    return result


def _extra_buffer_types(cpu: int) -> list[int]:
    registry = _base("ggml_backend_dev_backend_reg", _POINTER, _POINTER)(cpu)
    address = _base("ggml_backend_reg_get_proc_address", _POINTER, _POINTER, _TEXT)(
        registry, b"ggml_backend_dev_get_extra_bufts"
    )
    if not address:
        return []
    array = ctypes.CFUNCTYPE(_POINTER, _POINTER)(address)(cpu)
    pointers = ctypes.cast(array, ctypes.POINTER(_POINTER))
    found: list[int] = []
    while array and pointers[len(found)]:
        found.append(pointers[len(found)])
    return found


def _first_that_takes(
    buffer_types: list[int], cpu: int, ggml_type: int, columns: int, rows: int
) -> tuple[str, int] | None:
    context = _base("ggml_init", _POINTER, _InitParams)(
        _InitParams(8 * _base("ggml_tensor_overhead", _SIZE)(), None, True)
    )
    new_tensor = _base("ggml_new_tensor_2d", _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    free_buffer = _base("ggml_backend_buffer_free", None, _POINTER)
    try:
        weight = new_tensor(context, ggml_type, columns, rows)
        start = _TensorStart.from_address(weight)
        product = _base("ggml_mul_mat", _POINTER, _POINTER, _POINTER, _POINTER)(
            context, weight, new_tensor(context, _F32, columns, _BATCH)
        )
        for buffer_type in buffer_types:
            start.buffer = _base("ggml_backend_buft_alloc_buffer", _POINTER, _POINTER, _SIZE)(buffer_type, 0)
            supported = _base("ggml_backend_dev_supports_op", ctypes.c_bool, _POINTER, _POINTER)(cpu, product)
            free_buffer(start.buffer)
            start.buffer = None
            if supported:
                name = _base("ggml_backend_buft_name", _TEXT, _POINTER)(buffer_type).decode()
                return name, _base("ggml_backend_buft_get_alloc_size", _SIZE, _POINTER, _POINTER)(buffer_type, weight)
        return None
    finally:
        _base("ggml_free", None, _POINTER)(context)


def _base(name: str, restype: Any, *argtypes: Any) -> Any:
    return ggml.function(name, restype, argtypes)
