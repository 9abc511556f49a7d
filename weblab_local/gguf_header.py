"""What a GGUF says of itself, read by llama.cpp's own reader, without its weights and without the `gguf` package."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weblab_local import ggml
from weblab_local.errors import ModelFileError
from weblab_local.i18n import _
from weblab_local.llama_log import collect_errors

ARCHITECTURE = "gptneox"

_LAYER = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
"""What each layer has, as weight and bias."""


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params` of ggml's gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_HANDLE, _INDEX, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t

_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    8: ("str", ctypes.c_char_p),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}
"""`enum gguf_type` to the getter's suffix and C type; arrays are left out."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file. `offset` is counted from the file's start, in bytes like `nbytes`."""

    ggml_type: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Metadata by GGUF's keys (scalars and strings; no arrays) and the table of tensors."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def hparam(self, key: str) -> int:
        """A number of the architecture: `hparam("block_count")` is `gptneox.block_count`. ModelFileError if absent."""
        try:
            return int(self.metadata[f"{ARCHITECTURE}.{key}"])
        except (KeyError, ValueError):
            raise ModelFileError(
                _("{path} has no {key} in its metadata.").format(path=self.path, key=f"{ARCHITECTURE}.{key}"),
                _("Convert the checkpoint again."),
            ) from None


def read_header(path: Path) -> Header:
    """Read the header of a GGUF. Raises ModelFileError for a file that is damaged or no GGUF."""
    with collect_errors() as errors:
        handle = ggml.function("gguf_init_from_file", _HANDLE, (_TEXT, _InitParams))(
            os.fsencode(path), _InitParams(True, None)
        )
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
        return Header(path, _metadata(handle), _tensors(handle))
    finally:
        ggml.function("gguf_free", None, (_HANDLE,))(handle)


def require_gptneox(header: Header) -> None:
    """Raise ModelFileError unless the file holds a GPT-NeoX, and all of it."""
    found = header.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise ModelFileError(
            _("{path} is a {found} model; this program runs {ours} models only.").format(
                path=header.path, found=found, ours=ARCHITECTURE
            ),
            _("llama.cpp's own tools, Ollama or LM Studio run others."),
        )
    end = max((tensor.offset + tensor.nbytes for tensor in header.tensors.values()), default=0)
    size = header.path.stat().st_size
    if size < end:
        raise ModelFileError(
            _("{path} is truncated: it has {size} of {end} bytes.").format(path=header.path, size=size, end=end),
            _("Copy or download it again, or convert the checkpoint again (make convert FORCE=1)."),
        )
    if not _is_consistent(header):
        raise ModelFileError(
            _("{path} is damaged: its tensors are not those of the model that its metadata describes.").format(
                path=header.path
            ),
            _("Copy or download it again, or convert the checkpoint again (make convert FORCE=1)."),
        )


def _is_consistent(header: Header) -> bool:
    """Whether tensors and rows are as the metadata says. ggml ends the process when asked for a row that cannot be."""
    n_embd, n_ff, n_head = map(header.hparam, ("embedding_length", "feed_forward_length", "attention.head_count"))
    n_layer = header.hparam("block_count")
    if not all(0 < number < 2**31 for number in (n_embd, n_ff, n_head)) or n_embd % n_head:
        return False
    if not 0 < n_layer <= len(header.tensors):
        return False
    parts = [f"blk.{layer}.{part}" for layer in range(n_layer) for part in _LAYER]
    names = {f"{part}.{kind}" for part in [*parts, "output_norm"] for kind in ("weight", "bias")}
    if not header.tensors.keys() >= names | {"token_embd.weight", "output.weight"}:
        return False
    block_size = ggml.function("ggml_blck_size", ctypes.c_int64, (ctypes.c_int,))
    row_size = ggml.function("ggml_row_size", _SIZE, (ctypes.c_int, ctypes.c_int64))
    for name, tensor in header.tensors.items():
        columns = n_ff if ".ffn_down." in name else n_embd
        if not name.endswith(".weight"):
            continue
        if columns % block_size(tensor.ggml_type) or tensor.nbytes % row_size(tensor.ggml_type, columns):
            return False
    return True


def _metadata(handle: Any) -> dict[str, Any]:
    n_keys = ggml.function("gguf_get_n_kv", ctypes.c_int64, (_HANDLE,))(handle)
    key_of = ggml.function("gguf_get_key", _TEXT, (_HANDLE, _INDEX))
    type_of = ggml.function("gguf_get_kv_type", ctypes.c_int, (_HANDLE, _INDEX))
    metadata = {}
    for index in range(n_keys):
        if type_of(handle, index) not in _SCALARS:
            continue
        suffix, c_type = _SCALARS[type_of(handle, index)]
        value = ggml.function(f"gguf_get_val_{suffix}", c_type, (_HANDLE, _INDEX))(handle, index)
        text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
        metadata[key_of(handle, index).decode("utf-8", errors="replace")] = text
    return metadata


def _tensors(handle: Any) -> dict[str, TensorInfo]:
    n_tensors = ggml.function("gguf_get_n_tensors", ctypes.c_int64, (_HANDLE,))(handle)
    data_start = ggml.function("gguf_get_data_offset", _SIZE, (_HANDLE,))(handle)
    name_of = ggml.function("gguf_get_tensor_name", _TEXT, (_HANDLE, _INDEX))
    type_of = ggml.function("gguf_get_tensor_type", ctypes.c_int, (_HANDLE, _INDEX))
    offset_of = ggml.function("gguf_get_tensor_offset", _SIZE, (_HANDLE, _INDEX))
    size_of = ggml.function("gguf_get_tensor_size", _SIZE, (_HANDLE, _INDEX))
    return {
        name_of(handle, index).decode("utf-8", errors="replace"): TensorInfo(
            type_of(handle, index), data_start + offset_of(handle, index), size_of(handle, index)
        )
        for index in range(n_tensors)
    }
