"""The KV cache as sequences of tokens: who has which, what is kept of earlier requests, and what room there is.

All sequences share the context's cells, and sequences that begin alike share those of their beginning. One that no
request has keeps its tokens, for a later prompt that begins alike, until the room is needed. Only the scheduler's
worker thread calls what is here.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weblab_local.llama.context import Context

TRIM = 32
"""Tokens by which an idle sequence is shortened at least, when room is needed: not one by one at every step."""


@dataclass(eq=False)
class KvSequence:
    """One of the context's sequences. `tokens` are those in its cells; it is idle when it is not `in_use`."""

    index: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """Which cells hold them, by numbers of our own: where two sequences share a cell, both have its number."""
    in_use: bool = False
    last_used: float = 0.0


class KvCache:
    """The sequences of a context whose `n_ctx` cells they share."""

    def __init__(self, context: Context, *, n_ctx: int, n_parallel: int) -> None:
        self._context = context
        self._n_ctx = n_ctx
        self.sequences = [KvSequence(index) for index in range(n_parallel)]
        self._n_holders: Counter[int] = Counter()
        """By cell, how many sequences have it."""
        self._next_cell = 0

    @property
    def _idle(self) -> list[KvSequence]:
        """Longest unused first."""
        return sorted((s for s in self.sequences if not s.in_use), key=lambda sequence: sequence.last_used)

    @property
    def has_idle_sequence(self) -> bool:
        """Whether another request could have a sequence."""
        return any(not sequence.in_use for sequence in self.sequences)

    @property
    def n_used(self) -> int:
        """Cells that hold something, of requests or of idle sequences."""
        return len(self._n_holders)

    @property
    def n_free(self) -> int:
        """Cells that hold nothing."""
        return self._n_ctx - self.n_used

    @property
    def n_obtainable(self) -> int:
        """Cells that no request has: free ones, and what idle sequences have for themselves."""
        return self._n_ctx - len(set().union(*(sequence.cells for sequence in self.sequences if sequence.in_use)))

    def make_room(self, n_cells: int) -> int:
        """Shorten idle sequences from their ends, the longest unused first, until `n_cells` are free, if that can be.

        Returns how many are free.
        """
        for sequence in self._idle if self.n_free < n_cells else ():
            while sequence.tokens and self.n_free < n_cells:
                self.forget(sequence, max(0, len(sequence.tokens) - max(n_cells - self.n_free, TRIM)))
        return self.n_free

    def take(self, prompt: Sequence[int], n_reusable: int) -> KvSequence | None:
        """An idle sequence for `prompt`, which begins with what is in the cache of its first `n_reusable` tokens.

        None where all are in use.
        """
        idle = self._idle
        if not idle:
            return None
        chosen = _best(idle, prompt)
        self._begin_with_known(chosen, prompt, n_reusable)
        chosen.in_use = True
        return chosen

    def _begin_with_known(self, sequence: KvSequence, prompt: Sequence[int], n_reusable: int) -> None:
        own = min(common_prefix(sequence.tokens, prompt), n_reusable)
        donor = max(self.sequences, key=lambda other: common_prefix(other.tokens, prompt))
        shared = min(common_prefix(donor.tokens, prompt), n_reusable)
        if shared > own and donor is not sequence:
            self.share(donor, sequence, shared)
        else:
            self.forget(sequence, own)

    def release(self, sequence: KvSequence) -> None:
        """The sequence's request has ended, or gives it up; its tokens stay until the room is needed."""
        sequence.in_use = False
        sequence.last_used = time.perf_counter()

    def append(self, sequence: KvSequence, tokens: Sequence[int]) -> None:
        """Take note that `tokens` were computed at the end of `sequence`."""
        cells = range(self._next_cell, self._next_cell + len(tokens))
        self._next_cell += len(tokens)
        self._n_holders.update(cells)
        sequence.tokens.extend(tokens)
        sequence.cells.extend(cells)

    def share(self, donor: KvSequence, sequence: KvSequence, length: int) -> None:
        """Let `sequence` have the first `length` tokens of `donor` too, in place of its own."""
        self.forget(sequence)
        self._context.share(donor.index, sequence.index, 0, length)
        sequence.tokens = donor.tokens[:length]
        sequence.cells = donor.cells[:length]
        self._n_holders.update(sequence.cells)

    def forget(self, sequence: KvSequence, start: int = 0) -> None:
        """Drop the tokens of `sequence` from position `start` on."""
        self._context.forget(sequence.index, start)
        for cell in sequence.cells[start:]:
            self._n_holders[cell] -= 1
            if not self._n_holders[cell]:
                del self._n_holders[cell]
        del sequence.tokens[start:], sequence.cells[start:]

    def clear(self) -> None:
        """Forget what idle sequences have."""
        for sequence in self._idle:
            self.forget(sequence)

    def save(self, ids: Sequence[int], path: Path) -> int:
        """How many of `ids` an idle sequence has; their state is written to `path`, where it has any.

        A sequence that has more of another conversation than of this one is left as it is.
        """
        sequence = max(self._idle, key=lambda s: common_prefix(s.tokens, ids), default=None)
        length = 0 if sequence is None else common_prefix(sequence.tokens, ids)
        if sequence is None or 2 * length <= len(sequence.tokens):
            return 0
        self.forget(sequence, length)
        self._context.save_sequence(sequence.index, path)
        return length

    def restore(self, ids: Sequence[int], state: bytes | memoryview) -> bool:
        """Put a state from `save` back, if an idle sequence and room are there; other idle ones are forgotten."""
        idle = self._idle
        if not idle or self.n_obtainable < len(ids):
            return False
        self.clear()
        if not self._context.restore_sequence(idle[0].index, state, len(ids)):
            self.forget(idle[0])
            return False
        self.append(idle[0], ids)
        return True


def _best(idle: Sequence[KvSequence], prompt: Sequence[int]) -> KvSequence:
    """The one of `idle` that has most of `prompt`, unless it would lose more than it keeps.

    Another conversation that begins alike can share that with the sequence longest unused, and stay.
    """
    common = [(common_prefix(sequence.tokens, prompt), sequence) for sequence in idle]
    length, sequence = max(common, key=lambda pair: pair[0])
    if 2 * length < len(sequence.tokens):
        return min(idle, key=lambda other: (bool(other.tokens), other.last_used))
    return sequence


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens `left` and `right` begin with alike."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
