"""The KV cache as sequences of tokens: who has which, what is kept of earlier requests, and for whom there is room.

All sequences share the context's cells. One that no request has keeps its tokens, for a later prompt that begins alike;
it is forgotten when a request needs the room. Only the scheduler's worker thread calls what is here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from weblab_local.context import Context


@dataclass(eq=False)
class KvSequence:
    """One of the context's sequences. `tokens` are those in its cells; `reserved` cells are a request's, 0: idle."""

    index: int
    tokens: list[int] = field(default_factory=list)
    reserved: int = 0
    last_used: float = 0.0


class KvCache:
    """The sequences of a context whose `n_ctx` cells they share."""

    def __init__(self, context: Context, *, n_ctx: int, n_parallel: int) -> None:
        self._context = context
        self._n_ctx = n_ctx
        self.sequences = [KvSequence(index) for index in range(n_parallel)]

    @property
    def _idle(self) -> list[KvSequence]:
        """Longest unused first."""
        return sorted((s for s in self.sequences if not s.reserved), key=lambda sequence: sequence.last_used)

    def take(self, prompt: Sequence[int], n_cells: int, n_most: int) -> KvSequence | None:
        """An idle sequence for `prompt`, when there are `n_cells` for it; None if there are not yet.

        It has what is in the cache of the prompt's first `n_most` tokens already. Other idle sequences are forgotten as
        far as that is needed, the longest unused first.
        """
        idle = self._idle
        reserved = sum(sequence.reserved for sequence in self.sequences) + n_cells
        if not idle or reserved > self._n_ctx:
            return None
        chosen = _best(idle, prompt)
        self._begin_with_known(chosen, prompt, n_most)
        others = [sequence for sequence in idle if sequence is not chosen]
        while others and reserved + sum(len(sequence.tokens) for sequence in others) > self._n_ctx:
            self.forget(others.pop(0))
        chosen.reserved = n_cells
        return chosen

    def _begin_with_known(self, sequence: KvSequence, prompt: Sequence[int], n_most: int) -> None:
        own = min(common_prefix(sequence.tokens, prompt), n_most)
        donor = max(self.sequences, key=lambda other: common_prefix(other.tokens, prompt))
        shared = min(common_prefix(donor.tokens, prompt), n_most)
        if shared > own and donor is not sequence:
            self.share(donor, sequence, shared)
        else:
            self.forget(sequence, own)

    def release(self, sequence: KvSequence) -> None:
        """The sequence's request has ended; its tokens stay."""
        sequence.reserved = 0
        sequence.last_used = time.perf_counter()

    def share(self, donor: KvSequence, sequence: KvSequence, length: int) -> None:
        """Let `sequence` have the first `length` tokens of `donor` too, in place of its own."""
        self.forget(sequence)
        self._context.share(donor.index, sequence.index, 0, length)
        sequence.tokens = donor.tokens[:length]

    def forget(self, sequence: KvSequence, start: int = 0) -> None:
        """Drop the tokens of `sequence` from position `start` on."""
        self._context.forget(sequence.index, start)
        del sequence.tokens[start:]

    def save(self, ids: Sequence[int]) -> tuple[int, bytes]:
        """How many of `ids` an idle sequence has, and their state; (0, b"") when none has any."""
        sequence = max(self._idle, key=lambda s: common_prefix(s.tokens, ids), default=None)
        length = 0 if sequence is None else common_prefix(sequence.tokens, ids)
        if sequence is None or length == 0:
            return 0, b""
        self.forget(sequence, length)
        return length, self._context.save_sequence(sequence.index)

    def restore(self, ids: Sequence[int], state: bytes) -> bool:
        """Put a state from `save` back, if an idle sequence and room are there; other idle ones are forgotten."""
        idle = self._idle
        if not idle or sum(sequence.reserved for sequence in self.sequences) + len(ids) > self._n_ctx:
            return False
        for sequence in idle:
            self.forget(sequence)
        if not self._context.restore_sequence(idle[0].index, state, len(ids)):
            self.forget(idle[0])
            return False
        idle[0].tokens = list(ids)
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
