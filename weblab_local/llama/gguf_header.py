"""What a GGUF says of itself, read by llama.cpp's own reader, without its weights and without the `gguf` package."""

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weblab_local.errors import ModelFileError
from weblab_local.i18n import _
from weblab_local.llama import compatibility, ggml
from weblab_local.llama.ggml import POINTER, SIZE, TEXT
from weblab_local.llama.log import collect_errors
from weblab_local.llama.structures import GgufInit

ARCHITECTURE = "gptneox"


_INDEX = ctypes.c_int64
_STRING, _ARRAY = 8, 9
_N_DIMS = 4
"""GGML_MAX_DIMS."""

_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    _STRING: ("str", ctypes.c_char_p),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}
"""`enum gguf_type` to the getter's suffix and C type."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file. `offset` is counted from the file's start, in bytes like `nbytes`.

    `shape` is ggml's: the columns first, and no ones at the end.
    """

    ggml_type: int
    offset: int
    nbytes: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Header:
    """Metadata by GGUF's keys (scalars and strings; no arrays) and the table of tensors.

    `types` has the type of every key, arrays too: "u32", "f32", "bool", "str", "[str]", "[i32]" and so on.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    types: Mapping[str, str] = field(default_factory=dict)

    def hparam(self, key: str) -> int:
        """A number of the architecture: `hparam("block_count")` is `gptneox.block_count`. ModelFileError if absent."""
        try:
            return int(self.metadata[f"{ARCHITECTURE}.{key}"])
        except (KeyError, ValueError, OverflowError):
            raise ModelFileError(
                _("{path} has no {key} in its metadata.").format(path=self.path, key=f"{ARCHITECTURE}.{key}"),
                _("Convert the checkpoint again."),
            ) from None


def read_header(path: Path) -> Header:
    """Read the header of a GGUF. Raises ModelFileError for a file that is damaged or no GGUF."""
    with _opened(path) as handle:
        metadata, types = _metadata(handle)
        return Header(path, metadata, _tensors(handle), types)


def read_arrays(path: Path, *keys: str) -> list[list[Any]]:
    """The values of these keys, which hold strings (as bytes) or numbers; none for what is no array, or not there.

    Raises ModelFileError as `read_header` does.
    """
    with _opened(path) as handle:
        return [
            _array(handle, ggml.function("gguf_find_key", _INDEX, POINTER, TEXT)(handle, key.encode())) for key in keys
        ]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    compatibility.require()
    with collect_errors() as errors:
        handle = ggml.function("gguf_init_from_file", POINTER, TEXT, GgufInit)(os.fsencode(path), GgufInit(True, None))
    if not handle:
        raise ModelFileError(
            _("{path} is no GGUF that llama.cpp can read. {errors}")
            .format(path=path, errors=" ".join(errors))
            .rstrip(),
            _(
                "If it was copied or downloaded, do that again; else convert the checkpoint again "
                "(make convert FORCE=1)."
            ),
        )
    try:
        yield handle
    finally:
        ggml.function("gguf_free", None, POINTER)(handle)


def _metadata(handle: Any) -> tuple[dict[str, Any], dict[str, str]]:
    n_keys = ggml.function("gguf_get_n_kv", _INDEX, POINTER)(handle)
    key_of = ggml.function("gguf_get_key", TEXT, POINTER, _INDEX)
    type_of = ggml.function("gguf_get_kv_type", ctypes.c_int, POINTER, _INDEX)
    element_of = ggml.function("gguf_get_arr_type", ctypes.c_int, POINTER, _INDEX)
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    for index in range(n_keys):
        key = key_of(handle, index).decode("utf-8", errors="replace")
        if type_of(handle, index) == _ARRAY:
            types[key] = f"[{_SCALARS[element_of(handle, index)][0]}]"
            continue
        suffix, c_type = _SCALARS[type_of(handle, index)]
        value = ggml.function(f"gguf_get_val_{suffix}", c_type, POINTER, _INDEX)(handle, index)
        metadata[key] = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
        types[key] = suffix
    return metadata, types


def _array(handle: Any, index: int) -> list[Any]:
    if index < 0 or ggml.function("gguf_get_kv_type", ctypes.c_int, POINTER, _INDEX)(handle, index) != _ARRAY:
        return []
    n = ggml.function("gguf_get_arr_n", SIZE, POINTER, _INDEX)(handle, index)
    element = ggml.function("gguf_get_arr_type", ctypes.c_int, POINTER, _INDEX)(handle, index)
    if element == _STRING:
        text = ggml.function("gguf_get_arr_str", TEXT, POINTER, _INDEX, SIZE)
        return [text(handle, index, i) for i in range(n)]
    data = ggml.function("gguf_get_arr_data", POINTER, POINTER, _INDEX)(handle, index)
    return list((_SCALARS[element][1] * n).from_address(data)) if n else []


def _tensors(handle: Any) -> dict[str, TensorInfo]:
    n_tensors = ggml.function("gguf_get_n_tensors", _INDEX, POINTER)(handle)
    data_start = ggml.function("gguf_get_data_offset", SIZE, POINTER)(handle)
    name_of = ggml.function("gguf_get_tensor_name", TEXT, POINTER, _INDEX)
    type_of = ggml.function("gguf_get_tensor_type", ctypes.c_int, POINTER, _INDEX)
    offset_of = ggml.function("gguf_get_tensor_offset", SIZE, POINTER, _INDEX)
    size_of = ggml.function("gguf_get_tensor_size", SIZE, POINTER, _INDEX)
    shape_of = ggml.function("gguf_get_tensor_ne", ctypes.POINTER(_INDEX), POINTER, _INDEX)
    tensors = {}
    for index in range(n_tensors):
        shape = shape_of(handle, index)[:_N_DIMS]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        tensors[name_of(handle, index).decode("utf-8", errors="replace")] = TensorInfo(
            type_of(handle, index), data_start + offset_of(handle, index), size_of(handle, index), tuple(shape)
        )
    return tensors
