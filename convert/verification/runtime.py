"""A GGUF as llama.cpp runs it: ids of a text, logits of every position, greedy continuations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weblab_local.llama.context import BatchToken, Context, Model

CHUNK_TOKENS = 256
"""Positions whose logits are in memory at a time: 51 MB with a vocabulary of 50,000."""


class Runtime:
    """A loaded GGUF with room for one sequence. Keys and values in f16, as the engine has them by default."""

    def __init__(self, model: Model, n_ctx: int, n_threads: int) -> None:
        self._model = model
        self.n_vocab = model.n_vocab
        """Entries of the vocabulary, padding included."""
        self._context = Context(
            model,
            n_ctx=n_ctx,
            n_seq_max=1,
            n_batch=min(CHUNK_TOKENS, n_ctx),
            n_threads=n_threads,
            n_threads_batch=n_threads,
            kv_type="f16",
            flash_attention=None,
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as the engine gets them: NFC, llama.cpp's tokenizer, no special token."""
        return self._model.tokenizer.encode(text)

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The logits after each of `ids`, some positions at a time: (up to CHUNK_TOKENS, n_vocab).

        An array is valid until the next one is taken. `ids` may not be longer than the context.
        """
        self._context.forget(0)
        for start in range(0, len(ids), CHUNK_TOKENS):
            chunk = ids[start : start + CHUNK_TOKENS]
            self._context.decode([BatchToken(token, start + i, 0, True) for i, token in enumerate(chunk)])
            yield self._context.batch_logits(len(chunk))

    def greedy(self, ids: Sequence[int], max_tokens: int, n_vocab: int) -> list[int]:
        """The most likely continuation of `ids`, up to and with the end-of-text token, of tokens below `n_vocab`."""
        answer: list[int] = []
        *_, last = self.logits(ids)
        row = last[-1]
        while len(answer) < max_tokens:
            answer.append(int(row[:n_vocab].argmax()))
            if self._model.is_end(answer[-1]) or len(answer) == max_tokens:
                break
            self._context.decode([BatchToken(answer[-1], len(ids) + len(answer) - 1, 0, True)])
            row = self._context.logits(0)
        return answer

    def close(self) -> None:
        """Free the context; the model stays."""
        self._context.close()


@contextmanager
def running(path: Path, n_ctx: int, n_threads: int, n_gpu_layers: int = 0) -> Iterator[Runtime]:
    """Load the GGUF at `path` for sequences of up to `n_ctx` tokens. Raises WeblabError where llama.cpp cannot.

    The weights stay in the page cache, as they are in the file (no repacking): whole batches are no slower so, and a
    file larger than the memory can be judged too.
    """
    model = Model(path, n_gpu_layers, repack=False)
    try:
        runtime = Runtime(model, n_ctx, n_threads)
        try:
            yield runtime
        finally:
            runtime.close()
    finally:
        model.close()
