"""llama.cpp itself, for the tests to compare with: its quantizer, its importance matrices, its logits, its decoding."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, LlamaFileType
from llama_cpp import Llama, llama_cpp
from numpy.typing import NDArray

from weblab_local.llama import ggml
from weblab_local.llama import log as llama_log


def quantize(
    source: Path, target: Path, file_type: LlamaFileType, imatrix: Mapping[str, NDArray[np.float32]] | None = None
) -> Path:
    """`llama_model_quantize`, which is what llama-quantize calls; `imatrix` as that tool makes it of a matrix."""
    llama_log.route()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = 2
    if imatrix is not None:
        entry, floats = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        data = [entry(name.encode(), w.ctypes.data_as(floats), w.size) for name, w in imatrix.items()]
        params.imatrix = (entry * (len(data) + 1))(*data)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


def tensor_bytes(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor of a GGUF, by gguf's own reader."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def write_imatrix(
    path: Path, tensors: Mapping[str, NDArray[np.float32]], datasets: Sequence[str], chunk_count: int, chunk_size: int
) -> Path:
    """What `IMatrixCollector::save_imatrix` of llama-imatrix writes, call by call in ggml's C functions.

    `tensors` are (rows, columns) by their whole names, in the order of the file.
    """
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64

    def call(name: str, restype: Any, *arguments: tuple[Any, Any]) -> Any:
        return ggml.function(name, restype, *(kind for kind, _ in arguments))(*(value for _, value in arguments))

    context = call("ggml_init", pointer, (_InitParams, _InitParams(1 << 24, None, False)))
    file = call("gguf_init_empty", pointer)
    names = (text * len(datasets))(*(name.encode() for name in datasets))
    call("gguf_set_val_str", None, (pointer, file), (text, b"general.type"), (text, b"imatrix"))
    call(
        "gguf_set_arr_str",
        None,
        (pointer, file),
        (text, b"imatrix.datasets"),
        (ctypes.POINTER(text), names),
        (ctypes.c_size_t, len(names)),
    )
    for key, value in ((b"imatrix.chunk_count", chunk_count), (b"imatrix.chunk_size", chunk_size)):
        call("gguf_set_val_u32", None, (pointer, file), (text, key), (ctypes.c_uint32, value))
    for name, values in tensors.items():
        rows, columns = values.shape
        shape = (number, columns), (number, rows)
        tensor = call("ggml_new_tensor_2d", pointer, (pointer, context), (ctypes.c_int, 0), *shape)
        call("ggml_set_name", pointer, (pointer, tensor), (text, name.encode()))
        data = call("ggml_get_data_f32", pointer, (pointer, tensor))
        ctypes.memmove(data, np.ascontiguousarray(values, np.float32).ctypes.data, values.size * 4)
        call("gguf_add_tensor", None, (pointer, file), (pointer, tensor))
    written = call(
        "gguf_write_to_file", ctypes.c_bool, (pointer, file), (text, str(path).encode()), (ctypes.c_bool, False)
    )
    call("gguf_free", None, (pointer, file))
    call("ggml_free", None, (pointer, context))
    assert written
    return path


@contextmanager
def loaded(path: Path, logits_all: bool = False) -> Iterator[Llama]:
    """The model in llama.cpp, on one thread so that nothing depends on the machine's load."""
    llama_log.route()
    model = Llama(str(path), n_ctx=2048, n_threads=1, n_threads_batch=2, logits_all=logits_all, verbose=False)
    try:
        yield model
    finally:
        model.close()


def logits(path: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """llama.cpp's logits after each of `ids`: (len(ids), n_vocab)."""
    with loaded(path, logits_all=True) as model:
        model.eval(list(ids))
        return np.array(model.scores[: len(ids)], dtype=np.float32)


def greedy(model: Llama, ids: Sequence[int], max_tokens: int) -> list[int]:
    """The most likely continuation, up to and with the end-of-text token."""
    answer: list[int] = []
    for token in model.generate(list(ids), temp=0.0, repeat_penalty=1.0, reset=True):
        answer.append(int(token))
        if token == model.token_eos() or len(answer) == max_tokens:
            break
    return answer
