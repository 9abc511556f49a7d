"""Whether llama.cpp is what this program was tested with: asked once, when its library is first used.

What a newer llama.cpp changes without a word to its callers is tried out here on a few bytes: structures and arguments.
"""

import ctypes
import re
from collections.abc import Callable, Mapping
from functools import cache

from weblab_local.errors import WeblabError
from weblab_local.i18n import _, n_
from weblab_local.llama import ggml, processor
from weblab_local.llama.ggml import POINTER, SIZE
from weblab_local.llama.structures import GgmlInit, GgufInit, TensorStart, TypeTraits

RPC_PROTOCOLS: Mapping[tuple[int, ...], tuple[int, int]] = {(0, 3, 35): (5, 0), (0, 3, 36): (7, 0)}
"""The versions of llama-cpp-python that were tested, and RPC_PROTO_MAJOR_VERSION and RPC_PROTO_MINOR_VERSION of their
ggml-rpc.h, which the library does not tell."""

BELOW = (0, 3, 37)
"""The first version that was not tested; pyproject.toml says the same to pip."""

_Q8_0 = 8


def version() -> str:
    """The version of llama-cpp-python whose library is used."""
    import llama_cpp

    return str(llama_cpp.__version__)


def is_tested(version: str) -> bool:
    """Whether this version of llama-cpp-python is one of those that were tested."""
    return _numbers(version) in RPC_PROTOCOLS


def rpc_protocol() -> tuple[int, int] | None:
    """The version of the RPC protocol that the library speaks, major and minor; None where that is not known."""
    return RPC_PROTOCOLS.get(_numbers(version()))


def untested(version: str) -> str:
    """A sentence for a person about a version of which `is_tested` is false."""
    return _("llama-cpp-python {version} was not tested with this program; {oldest} up to below {below} were.").format(
        version=version or "?", oldest=_dotted(min(RPC_PROTOCOLS)), below=_dotted(BELOW)
    )


def remedy() -> str:
    """What to do about a llama.cpp that does not fit."""
    newest = _dotted(max(RPC_PROTOCOLS))
    return _("Install one that was tested: pip install llama-cpp-python=={version}").format(version=newest)


@cache
def require() -> tuple[str, ...]:
    """Sentences for a person about what is not as it was tested. Raises WeblabError for what cannot work."""
    require_fit(*_NEEDED)
    return (() if is_tested(version()) else (untested(version()),)) + switched_off()


def switched_off() -> tuple[str, ...]:
    """Sentences for a person about what is not done because a structure it needs does not fit, though models run."""
    return tuple(_(message).format(version=version()) for name, message in _WITHOUT.items() if not fits(name))


def require_fit(*names: str) -> None:
    """Raise WeblabError where one of what `_CHECKS` names does not fit, or llama.cpp was made for other processors."""
    processor.require()
    failed = [name for name in names if not fits(name)]
    if failed:
        raise WeblabError(
            _("This llama.cpp (llama-cpp-python {version}) does not fit this program: {what}.").format(
                version=version(), what=", ".join(failed)
            ),
            remedy(),
        )


@cache
def fits(name: str) -> bool:
    """Whether what `_CHECKS` has under this name is as it was tested."""
    try:
        return _CHECKS[name]()
    except (AttributeError, ctypes.ArgumentError, TypeError):  # a function or a field is gone, or wants other arguments
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _defaults_are_known() -> bool:
    """What the library writes into the structures of its bindings, where it is a number that hardly changes."""
    from llama_cpp import llama_cpp as lib

    context, model = lib.llama_context_default_params(), lib.llama_model_default_params()
    return (
        (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max) == (512, 2048, 512, 1)
        and context.yarn_ext_factor == context.yarn_beta_slow == -1
        and (context.type_k, context.type_v) == (lib.GGML_TYPE_F16, lib.GGML_TYPE_F16)
        and (context.offload_kqv, context.kv_unified) == (True, False)
        and model.devices is None
        and (model.vocab_only, model.check_tensors, model.use_extra_bufts) == (False, False, True)
    )


def _tensor_begins_as_copied() -> bool:
    context = ggml.function("ggml_init", POINTER, GgmlInit)(GgmlInit(4096, None, True))
    try:
        if ggml.function("ggml_get_mem_size", SIZE, POINTER)(context) != 4096:
            return False
        if not ggml.function("ggml_get_no_alloc", ctypes.c_bool, POINTER)(context):
            return False
        new_tensor = ggml.function("ggml_new_tensor_1d", POINTER, POINTER, ctypes.c_int, ctypes.c_int64)
        tensor = new_tensor(context, _Q8_0, 32)
        start = TensorStart.from_address(tensor)
        before = (start.type, start.buffer)
        data = ctypes.create_string_buffer(256)
        address = -(-ctypes.addressof(data) // 64) * 64
        buffer = ggml.function("ggml_backend_cpu_buffer_from_ptr", POINTER, POINTER, SIZE)(address, 128)
        ggml.function("ggml_backend_tensor_alloc", ctypes.c_int, POINTER, POINTER, POINTER)(buffer, tensor, address)
        after = start.buffer
        ggml.function("ggml_backend_buffer_free", None, POINTER)(buffer)
        return before == (_Q8_0, None) and after == buffer
    finally:
        ggml.function("ggml_free", None, POINTER)(context)


def _gguf_opens_as_copied() -> bool:
    """An empty GGUF that is written to memory is read with the parameters that say where its tensors go."""
    empty = ggml.function("gguf_init_empty", POINTER)()
    size = ggml.function("gguf_get_meta_size", SIZE, POINTER)(empty)
    data = ctypes.create_string_buffer(size)
    ggml.function("gguf_get_meta_data", None, POINTER, POINTER)(empty, data)
    ggml.function("gguf_free", None, POINTER)(empty)
    tensors = POINTER()
    read = ggml.function("gguf_init_from_buffer", POINTER, POINTER, SIZE, GgufInit)(
        data, size, GgufInit(True, ctypes.addressof(tensors))
    )
    if not read or not tensors:
        return False
    holds = bool(ggml.function("ggml_get_no_alloc", ctypes.c_bool, POINTER)(tensors))
    ggml.function("gguf_free", None, POINTER)(read)
    ggml.function("ggml_free", None, POINTER)(tensors)
    return holds


def _types_are_described_as_copied() -> bool:
    traits = ggml.function("ggml_get_type_traits", ctypes.POINTER(TypeTraits), ctypes.c_int)(_Q8_0).contents
    type_size = ggml.function("ggml_type_size", SIZE, ctypes.c_int)(_Q8_0)
    name = ggml.function("ggml_type_name", POINTER, ctypes.c_int)(_Q8_0)
    known = (traits.type_name, traits.block_size, traits.type_size) == (name, 32, type_size)
    if not (known and traits.is_quantized and traits.to_float):
        return False
    block, values = ctypes.create_string_buffer(b"\x00\x3c" + bytes(range(32)), type_size), (ctypes.c_float * 32)()
    traits.to_float(block, values, 32)  # a scale of 1 in fp16, then 32 int8
    return list(values) == list(range(32))


def _penalties_take_their_arguments_in_order() -> bool:
    """Token 1 has come twice: its logit of 8 is divided by the repeat penalty, or less twice 0.5 and once 0.25."""
    from llama_cpp import llama_cpp as lib

    def penalized(*arguments: float) -> list[float]:
        sampler = lib.llama_sampler_init_penalties(4, 16, *arguments)
        for _time in range(2):
            lib.llama_sampler_accept(sampler, 1)
        data = (lib.llama_token_data * 4)(*(lib.llama_token_data(token, 8.0, 0.0) for token in range(4)))
        array = lib.llama_token_data_array(data, 4, -1, False)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
        return [array.data[i].logit for i in range(4)]

    found = [penalized(2.0, 0.0, 0.0), penalized(1.0, 0.5, 0.25)]
    return found == [[8, 4, 8, 8], [8, 6.75, 8, 8]]


TENSORS, TYPES = "ggml_init_params, ggml_tensor", "ggml_type_traits"

_NEEDED: Mapping[str, Callable[[], bool]] = {
    "llama_context_params, llama_model_params": _defaults_are_known,
    "gguf_init_params": _gguf_opens_as_copied,
    "llama_sampler_init_penalties": _penalties_take_their_arguments_in_order,
}
"""What every model needs, by the names that are in llama.cpp's headers."""

_CHECKS = {**_NEEDED, TENSORS: _tensor_begins_as_copied, TYPES: _types_are_described_as_copied}

_WITHOUT = {
    TENSORS: n_(
        "This llama.cpp (llama-cpp-python {version}) describes its tensors in another way than the tested one: the "
        "memory plan does not know which weights are rearranged for this processor, and may be less exact."
    ),
    TYPES: n_(
        "This llama.cpp (llama-cpp-python {version}) describes its types in another way than the tested one: models "
        "run, but conversions cannot be checked with it."
    ),
}
"""What is not there where one of the others does not fit. Whoever uses those asks `fits` or `require_fit` first."""
