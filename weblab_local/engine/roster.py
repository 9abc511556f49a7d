"""Who runs, who was preempted, and what is computed next. Only the scheduler's worker thread calls what is here.

A request is admitted when its prompt and a little more fit into the KV cache, not when all that it might write does.
When the cells run out, what idle sequences keep goes first; then the youngest request is preempted: it gives its
cells up and keeps its tokens, and goes on when there is room, by recomputing them (what is still in the cache, or
another has too, is shared). Nobody who came later is admitted before it. The oldest request is never preempted, so
that there is always one that comes to its end. Each time that a request was preempted, it waits for twice the room
to write before it goes on: it is not preempted again after a few tokens.
"""

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from weblab_local.engine.drafts import Drafts, Part
from weblab_local.engine.kv_cache import KvCache, common_prefix
from weblab_local.engine.pacing import Pacing
from weblab_local.engine.request import Request, RunningRequest

HEADROOM = 32
"""Cells beyond its prompt that are wanted for a request to be admitted, and kept for each that runs."""

OLDEST_SHARE = 4
"""Of the prompts' part of a step, the oldest prompt gets one in so many; the others, shortest first, the rest."""

AHEAD_TILE, AHEAD_TILES, AHEAD_REST = 16, 2, 4
"""Of a step that only reads ahead: it reads two times sixteen tokens at most, or once, or four where there are fewer.

llama.cpp multiplies sixteen rows at a time, or four: on two cores the 10B in Q4_K_M takes 0.25 s for one token, 0.60
for 4, 1.39 for 8, 1.70 for 16 and 2.83 for 32. Whoever presses Enter waits for the end of such a step."""


class Occupancy(NamedTuple):
    """How full an engine is: KV cells that hold something, and requests that were preempted and wait to go on."""

    n_cells: int
    n_preempted: int


class Roster:
    """The requests that have a sequence, in the order in which they got it, and those that gave it up."""

    def __init__(self, cache: KvCache, n_batch: int, pacing: Pacing, drafts: Drafts) -> None:
        self.running: list[RunningRequest] = []
        self.preempted: list[RunningRequest] = []
        """Oldest first."""
        self.pacing = pacing
        self.drafts = drafts
        self._cache = cache
        self._n_batch = n_batch

    @property
    def occupancy(self) -> Occupancy:
        """How full it is now. Any thread may ask."""
        return Occupancy(self._cache.n_used, len(self.preempted))

    def fits(self, request: Request) -> bool:
        """Whether a new request can be admitted now."""
        return not self.preempted and self._fits(request.prompt, request.reusable, _wanted(request.max_tokens, 0))

    def add(self, running: RunningRequest) -> None:
        """Let a request that has a sequence run. Its prefix may be on its way in another's prompt."""
        running.waits_for = self._ahead_of(running)
        self.running.append(running)

    def remove(self, running: RunningRequest) -> None:
        """Take a request out that has ended; what it has in the cache stays there for others."""
        if running in self.running:
            self.drafts.remember(running)
            self.running.remove(running)
            self._cache.release(running.sequence)
        else:
            self.preempted.remove(running)

    def resume(self) -> None:
        """Give preempted requests a sequence again, the oldest first, as long as there is room."""
        while self.preempted:
            running = self.preempted[0]
            wanted = _wanted(running.n_left, running.n_preempted)
            if not self._fits(running.to_read, running.shareable, wanted):
                return
            sequence = self._cache.take(running.to_read, len(running.shareable))
            if sequence is None:
                return
            running.sequence = sequence
            self.add(self.preempted.pop(0))

    def _fits(self, to_read: Sequence[int], shareable: Sequence[int], n_more: int) -> bool:
        if not self.running:
            return True
        if not self._cache.has_idle_sequence:
            return False
        room = self._cache.n_obtainable - sum(_promised(running) for running in self.running)
        needed = len(to_read) + n_more
        return needed <= room or needed - max(self._in_common(other, shareable) for other in self.running) <= room

    @staticmethod
    def _in_common(running: RunningRequest, shareable: Sequence[int]) -> int:
        has = running.to_read if running.in_prefill else running.sequence.tokens
        return common_prefix(has, shareable)

    def _ahead_of(self, running: RunningRequest) -> RunningRequest | None:
        """The earlier request that is about to compute the longest prefix of this one's beyond what it has."""
        best, most = None, len(running.sequence.tokens)
        for other in self.running:
            if other is running:
                break
            if other.in_prefill:
                length = common_prefix(other.to_read, running.shareable)
                if length > most:
                    best, most = other, length
        return best

    def share_prefixes(self) -> None:
        """Give requests that wait for another's prefix what it has computed, once it has all of it or has ended."""
        for running in self.running:
            other = running.waits_for
            if other is None:
                continue
            wanted = common_prefix(other.to_read, running.shareable)
            there = common_prefix(other.sequence.tokens, running.shareable)
            if there >= wanted or other not in self.running:
                if there > len(running.sequence.tokens):
                    self._cache.share(other.sequence, running.sequence, there)
                    running.cached = there
                running.waits_for = self._ahead_of(running) if there < wanted else None

    def plan_batch(self) -> list[Part]:
        """Which tokens of which request are computed next, with a free cell for each: first all that generate.

        Drafts are made where nobody reads, of what is free beyond that: no idle prefix is forgotten for them.
        """
        while True:
            parts: list[Part] = [
                (running, tuple(running.pending)) for running in self.running if not running.in_prefill
            ]
            n_cells = sum(len(tokens) for _, tokens in parts)
            if n_cells > self._cache.make_room(n_cells):
                self._preempt_youngest()
                continue
            if len(parts) == len(self.running):
                return self.drafts.extend(parts, min(self._n_batch, self._cache.n_free) - n_cells)
            parts += self._prompts(len(parts), n_cells)
            if parts or all(running.waits_for is not None for running in self.running):
                return parts
            self._preempt_youngest()  # all read their prompts, and there is no cell left for any

    def computed(self, parts: Sequence[Part], seconds: float) -> None:
        """Take note of how long a step took: later ones are as long as that allows."""
        n_generating = sum(not running.in_prefill for running, _ in parts)
        n_tokens = sum(len(tokens) for _, tokens in parts)
        n_prompt = sum(len(tokens) for running, tokens in parts if running.in_prefill)
        if not n_prompt:
            self.drafts.costs.computed(n_tokens, seconds)
        if n_tokens == n_generating + n_prompt:
            self.pacing.computed(n_generating, n_prompt, seconds)

    def _prompts(self, n_generating: int, n_cells: int) -> list[Part]:
        """The pieces of prompts that are read beside generations which take `n_cells`."""
        reading = [running for running in self.running if running.in_prefill and running.waits_for is None]
        shortest = min((running.n_to_read for running in reading), default=0)
        to_end = shortest if len(reading) < 2 else -(-shortest * OLDEST_SHARE // (OLDEST_SHARE - 1))
        room = min(self._n_batch - n_cells, self.pacing.chunk(n_generating, to_end))
        if all(running.request.reads_ahead for running in self.running):
            room = min(room, _ahead(shortest))
        room = min(room, sum(running.n_to_read for running in reading))
        if room <= 0:
            return []
        room = min(room, self._cache.make_room(n_cells + room) - n_cells)
        oldest = min(reading, key=lambda running: running.request.submitted)
        sizes = {oldest: min(room // OLDEST_SHARE, oldest.n_to_read)}
        room -= sizes[oldest]
        for running in sorted(reading, key=lambda running: running.n_to_read):
            more = min(running.n_to_read - sizes.get(running, 0), room)
            sizes[running] = sizes.get(running, 0) + more
            room -= more
        return [(running, running.next_to_read(sizes[running])) for running in reading if sizes[running]]

    def _preempt_youngest(self) -> None:
        youngest = max(self.running, key=lambda running: running.request.submitted)
        self.running.remove(youngest)
        self._cache.release(youngest.sequence)
        youngest.preempt()
        insort(self.preempted, youngest, key=lambda running: running.request.submitted)


def _ahead(n_to_read: int) -> int:
    """Tokens to read in one step where nobody waits for them."""
    tiles = min(n_to_read // AHEAD_TILE, AHEAD_TILES)
    return tiles * AHEAD_TILE or AHEAD_REST


def _wanted(n_left: int, n_preempted: int) -> int:
    """Cells beyond what it has to read that a request is given, when it is admitted or goes on."""
    return min(HEADROOM << n_preempted, n_left)


def _promised(running: RunningRequest) -> int:
    """Cells that a running request will take soon."""
    to_come = min(HEADROOM, running.n_left)
    if running.in_prefill:
        has = len(running.sequence.tokens)
        if running.waits_for is not None:
            has = max(has, common_prefix(running.waits_for.to_read, running.shareable))
        to_come += len(running.to_read) - has
    return to_come
