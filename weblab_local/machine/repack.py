"""Which weights llama.cpp will rearrange for this processor (its buffer types CPU_REPACK, AMX and the like).

Whether it does depends on the processor, the build and the tensor's type and shape. So ggml is asked with the question
that llama.cpp asks while loading: does the device support a multiplication with such a tensor in such a buffer
(`weight_buft_supported` in llama-model-loader.cpp)?
"""

import ctypes
import platform
from collections.abc import Mapping

from weblab_local.llama import compatibility, ggml
from weblab_local.llama.ggml import POINTER, SIZE, TEXT
from weblab_local.llama.gguf_header import Header
from weblab_local.llama.structures import GgmlInit, TensorStart
from weblab_local.machine.footprint import row_bytes

_F32 = 0
_BATCH = 512
"""Columns of the other factor that llama.cpp asks with."""

_MATRICES = tuple(f"{name}.weight" for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down", "output"))
"""The tensors that are multiplied with; of the embedding, rows are looked up."""

_SLOW_PROMPTS = 12
"""GGML_TYPE_Q4_K: rearranged for AVX, it generates faster and reads prompts slower (docs/figures.md, "Evaluating")."""


def repacked(header: Header, cpu: int) -> Mapping[str, tuple[str, int]]:
    """The matrices that the CPU device `cpu` (ggml's handle) rearranges: the buffer's name, and the bytes there.

    {} where this llama.cpp cannot be asked: its structures are others than those that are known here.
    """
    if not compatibility.fits(compatibility.TENSORS):
        return {}
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


def reads_prompts_faster(header: Header, rearranged: Mapping[str, tuple[str, int]]) -> bool:
    """Whether the matrices that are `rearranged` read prompts faster so, as far as it was measured: else True."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    slow = {name for name, (buffer, _) in rearranged.items() if buffer == "CPU_REPACK"}
    slow &= {name for name, tensor in header.tensors.items() if tensor.ggml_type == _SLOW_PROMPTS}
    return 2 * sum(rearranged[name][1] for name in slow) <= sum(size for _, size in rearranged.values())


def _extra_buffer_types(cpu: int) -> list[int]:
    registry = ggml.function("ggml_backend_dev_backend_reg", POINTER, POINTER)(cpu)
    list_them = ggml.backend_function(registry, "ggml_backend_dev_get_extra_bufts", POINTER, POINTER)
    if list_them is None:
        return []
    array = list_them(cpu)
    pointers = ctypes.cast(array, ctypes.POINTER(POINTER))
    found: list[int] = []
    while array and pointers[len(found)]:
        found.append(pointers[len(found)])
    return found


def _first_that_takes(
    buffer_types: list[int], cpu: int, ggml_type: int, columns: int, rows: int
) -> tuple[str, int] | None:
    context = ggml.function("ggml_init", POINTER, GgmlInit)(
        GgmlInit(8 * ggml.function("ggml_tensor_overhead", SIZE)(), None, True)
    )
    new_tensor = ggml.function("ggml_new_tensor_2d", POINTER, POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    free_buffer = ggml.function("ggml_backend_buffer_free", None, POINTER)
    try:
        weight = new_tensor(context, ggml_type, columns, rows)
        start = TensorStart.from_address(weight)
        product = ggml.function("ggml_mul_mat", POINTER, POINTER, POINTER, POINTER)(
            context, weight, new_tensor(context, _F32, columns, _BATCH)
        )
        for buffer_type in buffer_types:
            start.buffer = ggml.function("ggml_backend_buft_alloc_buffer", POINTER, POINTER, SIZE)(buffer_type, 0)
            supported = ggml.function("ggml_backend_dev_supports_op", ctypes.c_bool, POINTER, POINTER)(cpu, product)
            free_buffer(start.buffer)
            start.buffer = None
            if supported:
                name = ggml.function("ggml_backend_buft_name", TEXT, POINTER)(buffer_type).decode()
                return name, ggml.function("ggml_backend_buft_get_alloc_size", SIZE, POINTER, POINTER)(
                    buffer_type, weight
                )
        return None
    finally:
        ggml.function("ggml_free", None, POINTER)(context)
