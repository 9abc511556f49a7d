"""llama.cpp's model and context, as little more than their C functions: load, decode, KV cells, logits.

Only the scheduler's worker thread calls what is here, except `Context.abort`, which any thread may call.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from weblab_local.errors import ModelFileError, WeblabError
from weblab_local.i18n import _
from weblab_local.llama import backends
from weblab_local.llama.adapters import Adapter
from weblab_local.llama.end_tokens import END_TOKENS_KEY, from_text
from weblab_local.llama.kv_types import KvType
from weblab_local.llama.log import collect_errors
from weblab_local.llama.tokenizer import Tokenizer

KV_TYPES: Mapping[KvType, int] = {
    "f16": lib.GGML_TYPE_F16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}

_END_TOKENS_BYTES = 4096

_STATE_BEGINS = np.array([0xAF143CD8, 0], np.uint32)
"""What `llama_state_seq_set_data` wants before a state: its magic (`io_magic` in llama-context.cpp), and a sequence."""
_FILE_HEADER = 12
"""Bytes that begin a file of `llama_state_seq_save_file`: magic, version, number of tokens. The tokens come next."""

LoadProgress = Callable[[float], None]
"""Called with the share of the weights that is loaded, 0 to 1. An exception from it cancels the loading."""


class Model:
    """A loaded GGUF."""

    def __init__(
        self,
        path: Path,
        n_gpu_layers: int,
        on_progress: LoadProgress | None = None,
        adapters: Sequence[Adapter] = (),
        *,
        repack: bool = True,
        devices: Sequence[int] | None = None,
        tensor_split: Sequence[float] = (),
    ) -> None:
        """Load the weights. `devices` are ggml device handles to offload to; None is llama.cpp's own choice.

        `tensor_split` are the proportions of the offloaded layers on them; without, by their free memory. All contexts
        compute with the `adapters`.

        Raises ModelFileError with llama.cpp's error lines, or whatever `on_progress` raised.
        """
        backends.start()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.use_extra_bufts = repack
        if devices is not None:
            handles = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
            params.devices = ctypes.cast(handles, ctypes.c_void_p)
        if tensor_split:
            padding = [0.0] * (lib.llama_max_devices() - len(tensor_split))
            params.tensor_split = (ctypes.c_float * lib.llama_max_devices())(*tensor_split, *padding)
        raised: list[BaseException] = []

        def progressed(share: float, _: Any) -> bool:
            try:
                if on_progress is not None:
                    on_progress(share)
            except BaseException as error:
                raised.append(error)
            return not raised

        callback = lib.llama_progress_callback(progressed)
        params.progress_callback = callback
        with collect_errors() as errors:
            self.handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if raised:
            self.close()
            raise raised[0]
        if not self.handle:
            raise ModelFileError(
                _("llama.cpp cannot load {path}: {reason}").format(
                    path=path, reason=" ".join(errors) or _("it gives no reason")
                ),
                _("If memory is short, take a smaller quantization; if the file is damaged, convert again."),
            )
        self.adapters = [(self._adapter(adapter.path), adapter.scale) for adapter in adapters]
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.tokenizer = Tokenizer(self.vocab)
        self.n_vocab = len(self.tokenizer.pieces)
        self.eos = int(lib.llama_vocab_eos(self.vocab))
        self._ends = frozenset(token for token in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, token))
        self._ends |= self._more_ends()

    def _adapter(self, path: Path) -> Any:
        """llama.cpp's pointer to the adapter, which it frees with the model. Raises ModelFileError."""
        with collect_errors() as errors:
            handle = lib.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not handle:
            self.close()
            raise ModelFileError(
                _("llama.cpp cannot load {path}: {reason}").format(
                    path=path, reason=" ".join(errors) or _("it gives no reason")
                )
            )
        return handle

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a text."""
        return token in self._ends

    def _more_ends(self) -> frozenset[int]:
        """Return the end tokens of a model that has more of them than llama.cpp has keys for."""
        value = ctypes.create_string_buffer(_END_TOKENS_BYTES)
        n_bytes = lib.llama_model_meta_val_str(self.handle, END_TOKENS_KEY.encode(), value, len(value))
        return from_text(value.value) if n_bytes > 0 else frozenset()

    def close(self) -> None:
        """Free the weights. Its contexts have to be closed before."""
        if self.handle:
            lib.llama_model_free(self.handle)
            self.handle = None


class BatchToken(NamedTuple):
    """One token of a batch: where it stands in which sequence, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    logits: bool


class OutOfCells(WeblabError):
    """The KV cache has no room for a batch."""


class Context:
    """A llama.cpp context with a KV cache of `n_ctx` cells that `n_seq_max` sequences share."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_batch: int,
        n_threads: int,
        n_threads_batch: int,
        kv_type: KvType,
        flash_attention: bool | None,
    ) -> None:
        """Allocate KV cache and compute buffers. `flash_attention` None: wherever llama.cpp allows it."""
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_seq_max = n_seq_max
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        params.kv_unified = True
        params.no_perf = True
        with collect_errors() as errors:
            self._handle = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelFileError(
                _("llama.cpp cannot make a context of {n_ctx} tokens: {reason}").format(
                    n_ctx=n_ctx, reason=" ".join(errors) or _("it gives no reason")
                ),
                _("Use a smaller n_ctx, or kv_type q8_0."),
            )
        if model.adapters:
            self.set_adapters(*zip(*model.adapters, strict=True))
        self._cleanup = ExitStack()
        self.n_batch = n_batch
        self._n_vocab = model.n_vocab
        self._memory = lib.llama_get_memory(self._handle)
        self._batch = lib.llama_batch_init(n_batch, 0, 1)
        self._token, self._position, self._wanted = self._batch.token, self._batch.pos, self._batch.logits
        self._sequence = [self._batch.seq_id[i] for i in range(n_batch)]
        for i in range(n_batch):
            self._batch.n_seq_id[i] = 1
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._errors = self._cleanup.enter_context(collect_errors())
        self._set_abort_flag()

    def _set_abort_flag(self) -> None:
        """Let llama.cpp look at a byte of ours between two graph nodes, without Python and its lock.

        The callback it wants takes a pointer and returns a bool. C's strlen does just that with our buffer: 0 while
        the first byte is 0, else 1. A Python function would need the GIL at every node, beside busy host threads.
        """
        self._abort_flag = ctypes.create_string_buffer(2)
        libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        callback = ctypes.cast(libc.strlen, lib.ggml_abort_callback)
        lib.llama_set_abort_callback(self._handle, callback, ctypes.cast(self._abort_flag, ctypes.c_void_p))
        self._keep = (libc, callback)

    def set_adapters(self, handles: Sequence[Any], scales: Sequence[float]) -> None:
        """Compute with these adapters of the model from now on. What is in the KV cache was computed with others."""
        n = len(handles)
        pointers = (lib.llama_adapter_lora_p_ctypes * n)(*handles)
        lib.llama_set_adapters_lora(self._handle, pointers, n, (ctypes.c_float * n)(*scales))

    def abort(self) -> None:
        """Make the decode that is running, or the next one, end soon and give back False. From any thread."""
        self._abort_flag[0] = b"\x01"

    def decode(self, batch: Sequence[BatchToken]) -> bool:
        """Compute a batch to its end. False when it was aborted: then none of it is in the KV cache.

        Raises OutOfCells when the KV cache is full, WeblabError when llama.cpp fails.
        """
        self._batch.n_tokens = len(batch)
        for i, (token, position, sequence, wanted) in enumerate(batch):
            self._token[i] = token
            self._position[i] = position
            self._sequence[i][0] = sequence
            self._wanted[i] = wanted
        self._errors.clear()
        status = lib.llama_decode(self._handle, self._batch)
        if status == 2:
            self._abort_flag[0] = b"\x00"
            return False
        if status == 1:
            raise OutOfCells(_("The KV cache is full."), _("Use a larger n_ctx."))
        if status != 0:
            raise WeblabError(
                _("llama.cpp failed while computing: {reason}").format(reason=" ".join(self._errors) or status)
            )
        lib.llama_synchronize(self._handle)  # a GPU computes on; how long a step takes has to be known
        return True

    def clear_abort(self) -> None:
        """Take an `abort` back that came too late for a decode."""
        self._abort_flag[0] = b"\x00"

    def logits(self, index: int) -> NDArray[np.float32]:
        """The logits of batch entry `index` (n_vocab). Valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self._handle, index)
        address = ctypes.addressof(pointer.contents)
        row = self._rows.get(address)
        if row is None:
            row = self._rows[address] = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
        return row

    def batch_logits(self, n_wanted: int) -> NDArray[np.float32]:
        """The logits of all `n_wanted` entries that wanted them: (n_wanted, n_vocab). Valid until the next decode."""
        return np.ctypeslib.as_array(lib.llama_get_logits(self._handle), shape=(n_wanted, self._n_vocab))

    @property
    def handle(self) -> Any:
        """llama.cpp's pointer, for the sampler."""
        return self._handle

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop the cells of `sequence` from position `start` on."""
        lib.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let `target` have the cells of `source` at positions [start, stop) too; they are not copied."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, stop)

    def save_sequence(self, sequence: int, path: Path) -> None:
        """Write the KV state of a sequence to `path`, a layer at a time. Raises OSError when it is not there whole.

        llama.cpp writes to a file without holding all of it, but reads such a file only from its beginning. In place of
        tokens it is given what its state in memory begins with, so that the file has that state from `_FILE_HEADER` on.
        """
        begins = _STATE_BEGINS.ctypes.data_as(ctypes.POINTER(lib.llama_token))
        written = lib.llama_state_seq_save_file(self._handle, os.fsencode(path), sequence, begins, _STATE_BEGINS.size)
        if not written or written != path.stat().st_size:
            raise OSError(errno.EIO, _("the KV state could not be written whole"))

    def restore_sequence(self, sequence: int, state: bytes | memoryview, n_tokens: int) -> bool:
        """Put back a state of `n_tokens` tokens that `save_sequence` wrote, of a context with the same settings.

        It is read where it is, without a copy. False when llama.cpp refuses it, or it holds another number of tokens.
        """
        data = np.frombuffer(state, np.uint8)[_FILE_HEADER:]
        accepted = lib.llama_state_seq_set_data(self._handle, _bytes_of(data), data.size, sequence)
        return bool(accepted) and lib.llama_memory_seq_pos_max(self._memory, sequence) == n_tokens - 1

    def close(self) -> None:
        """Free KV cache, buffers and batch."""
        if self._handle:
            self._cleanup.close()
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._handle)
            self._handle = None


def _bytes_of(array: NDArray[np.uint8]) -> Any:
    """A pointer to an array's bytes, as llama.cpp's functions take it."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
