"""The largest tensor that a device can compute with. Vulkan drivers have such a limit, 128 MiB to 4 GiB.

llama.cpp leaves larger weights to the CPU, but puts a KV cache on the device all the same, and ends the process.
"""

import ctypes
from bisect import bisect

from weblab_local.errors import NotEnoughMemory
from weblab_local.i18n import _
from weblab_local.llama import ggml
from weblab_local.llama.ggml import GGML_TYPE_I8, POINTER
from weblab_local.llama.gguf_header import Header
from weblab_local.llama.kv_types import KvType
from weblab_local.llama.structures import GgmlInit
from weblab_local.sizes import memory_share

ANY_SIZE = 2**46
"""Bytes. A device that takes a tensor of so many has no limit that anybody meets."""


def largest_tensor(handle: int) -> int:
    """Bytes of the largest tensor that a device, given as its `ggml_backend_dev_t`, says it supports."""
    make = ggml.function("ggml_new_tensor_1d", POINTER, POINTER, ctypes.c_int, ctypes.c_int64)
    supports = ggml.function("ggml_backend_dev_supports_op", ctypes.c_bool, POINTER, POINTER)

    def is_too_large(n_bytes: int) -> bool:
        context = ggml.function("ggml_init", POINTER, GgmlInit)(GgmlInit(4096, None, True))
        takes = supports(handle, make(context, GGML_TYPE_I8, n_bytes))
        ggml.function("ggml_free", None, POINTER)(context)
        return not takes

    # A backend that takes not even one byte was asked about what it does not know.
    return bisect(range(1, ANY_SIZE + 1), False, key=is_too_large) or ANY_SIZE


def require_room_for_keys(header: Header, n_ctx: int, kv_type: KvType, device: str, largest: int) -> None:
    """Raise NotEnoughMemory where a layer's keys are more than the `largest` tensor of `device`, in bytes."""
    # This loads llama.cpp, which `doctor` may have to go without.
    from weblab_local.machine.footprint import Shape, keys_bytes

    size = keys_bytes(Shape.of(header), kv_type, n_ctx)
    if size > largest:
        raise NotEnoughMemory(
            _("{device} computes with tensors of at most {most}; one layer's keys would be {size}.").format(
                device=device, most=memory_share(largest), size=memory_share(size)
            ),
            _("Use a smaller n_ctx, or n_gpu_layers=0."),
        )
