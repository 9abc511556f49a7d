"""Before a file gets its final name: llama.cpp's own reader finds what was planned, and accepts the vocabulary."""

import ctypes
from pathlib import Path

import llama_cpp.llama_cpp as llama

from convert.errors import ConversionError
from convert.plan import PlannedOutput
from weblab_local import ggml
from weblab_local.llama_log import collect_errors


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params` of ggml's gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_HANDLE, _INDEX, _NAME = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p


def check_written(planned: PlannedOutput, path: Path) -> None:
    """Raise ConversionError unless every tensor in the file at `path` lies where it was planned, with its type."""
    open_file = ggml.function("gguf_init_from_file", _HANDLE, (_NAME, _InitParams))
    handle = open_file(str(path).encode(), _InitParams(True, None))
    if not handle:
        raise _unreadable(path)
    try:
        data_start = ggml.function("gguf_get_data_offset", ctypes.c_size_t, (_HANDLE,))(handle)
        n_tensors = ggml.function("gguf_get_n_tensors", ctypes.c_int64, (_HANDLE,))(handle)
        find = ggml.function("gguf_find_tensor", ctypes.c_int64, (_HANDLE, _NAME))
        offset = ggml.function("gguf_get_tensor_offset", ctypes.c_size_t, (_HANDLE, _INDEX))
        ggml_type = ggml.function("gguf_get_tensor_type", ctypes.c_int, (_HANDLE, _INDEX))
        found = {}
        for name in planned.tensors:
            index = find(handle, name.encode())
            found[name] = (ggml_type(handle, index), data_start + offset(handle, index)) if index >= 0 else None
    finally:
        ggml.function("gguf_free", None, (_HANDLE,))(handle)
    meant = {name: (int(entry.ggml_type), planned.position(name)) for name, entry in planned.tensors.items()}
    if found != meant or n_tensors != len(meant) or path.stat().st_size != planned.size:
        raise _unreadable(path)
    _check_vocabulary(path)


def _check_vocabulary(path: Path) -> None:
    params = llama.llama_model_default_params()
    params.vocab_only = True
    with collect_errors() as errors:
        model = llama.llama_model_load_from_file(str(path).encode(), params)
    if model is None:
        raise _unreadable(path, *errors)
    llama.llama_model_free(model)


def _unreadable(path: Path, *errors: str) -> ConversionError:
    return ConversionError(
        f"llama.cpp does not find in {path.name} what was written there. {' '.join(errors)}".rstrip(),
        "The disk may be failing. If it happens again, please report it with the checkpoint's name.",
    )
