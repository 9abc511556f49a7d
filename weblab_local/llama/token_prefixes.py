"""Which tokens of a vocabulary begin with another token: what a grammar refuses it refuses with everything after it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from weblab_local.llama.tokenizer import piece

Ids = NDArray[np.int64]


class TokenPrefixes:
    """The tokens as a forest: a token's parent is the longest other token that it begins with.

    `roots` have none. A byte-level vocabulary has a token for each byte, so that few tokens are roots: these, and the
    special ones, which stand for no text or end one.
    """

    def __init__(self, vocab: Any) -> None:
        """Build it for llama.cpp's `llama_vocab` pointer. It takes tens of milliseconds for 50,000 tokens."""
        pieces = [piece(vocab, token) for token in range(int(lib.llama_vocab_n_tokens(vocab)))]
        known = {text: token for token, text in enumerate(pieces) if text}
        # An end of text is allowed by where the grammar is, not by what it is written as.
        ends = [bool(lib.llama_vocab_is_eog(vocab, token)) for token in range(len(pieces))]
        parents = np.array([-1 if is_end else _parent(text, known) for text, is_end in zip(pieces, ends, strict=True)])
        self.roots: Ids = np.flatnonzero(parents < 0)
        order = np.argsort(parents, kind="stable")
        starts = np.searchsorted(parents[order], np.arange(len(pieces) + 1))
        self._children = [order[start:stop] for start, stop in pairwise(starts)]

    def accepted(self, accepts: Callable[[Ids], NDArray[np.bool_]]) -> Ids:
        """Return all tokens that `accepts` accepts, which it must not do without accepting their parents.

        It is asked for some tokens at a time, and never for one whose parent it has refused.
        """
        found: list[Ids] = []
        asked = self.roots
        while len(asked):
            taken = asked[accepts(asked)]
            found.append(taken)
            asked = np.concatenate([self._children[token] for token in taken] or [self.roots[:0]])
        return np.sort(np.concatenate(found))


def _parent(text: bytes, known: dict[bytes, int]) -> int:
    for length in range(len(text) - 1, 0, -1):
        parent = known.get(text[:length])
        if parent is not None:
            return parent
    return -1
