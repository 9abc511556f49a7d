"""How much of the prompts to read beside a generation, so that its tokens come at half of their speed, or fast enough.

What a prompt's token costs depends on the model, the machine and the length of the context, and more tokens are nearly
free for as long as reading the weights is what takes the time. So no cost is assumed: the chunk is scaled by what the
last step was allowed to take over what it took. A step of k times the tokens takes at most k times as long, so that a
chunk that grows like this stays within what is allowed, but for the rounding to whole tokens.

A prompt whose rest takes no longer than PAUSE is read at once, and steps without prompts follow until the answers
beside it have come as far as they would have. Its own answer begins sooner, and goes on beside them.

Prompts beside which nothing generates are read as fast as it goes, in whole batches, where a step can be aborted. Most
devices compute a step to its end: there the chunk is one that soon ends, since a cancelled prompt goes on until then.
"""

import math
import sys

SLOWDOWN = 2.0
"""What a step that reads prompts may take, in steps that only generate."""

UNNOTICED_SECONDS = 0.05
"""What it may take however quick a step alone is: twenty tokens a second are faster than anybody reads, and the few
tokens of a prompt that fit into a small model's step would take most of their time for what every step costs."""

PAUSE = 0.5
"""Seconds that an answer may be kept waiting in one step: it stops for a moment, and goes on faster afterwards."""

MEASURE_EVERY = 16
"""Steps with prompts in a row, after which one without is computed, to know what that takes by now."""

CHANGED_AFTER = 4
"""The same, when other sequences generate than when it was measured: with many short answers they often change."""

ALONE_SECONDS = 0.5
"""What a step may take that reads prompts only and cannot be aborted."""

FIRST_ALONE, LEAST_ALONE = 128, 32
"""Tokens of the first such step, and of the smallest: with fewer, reading the weights would take most of the time."""


class Pacing:
    """How long a step takes that only generates, and how many tokens of prompts the next step may read beside it."""

    def __init__(self, *, can_abort: bool = True) -> None:
        """`can_abort`: whether a step that is being computed can be ended."""
        self._alone = float(sys.maxsize if can_abort else FIRST_ALONE)
        self._adapts = not can_abort
        self._chunk = 1.0
        self._generating_seconds = 0.0
        self._n_generating = 0
        """The sequences that generated in the step that took so long."""
        self._mixed_since = 0
        self._spare = PAUSE
        """Seconds by which steps took less than they were allowed, PAUSE at most; after a long one it is negative."""
        self._token_seconds = math.inf
        """What a prompt's token takes in one step with others."""

    def chunk(self, n_generating: int, n_to_end: int = 0) -> int:
        """Return how many prompt tokens to read beside `n_generating` sequences, at least one.

        With `n_to_end` tokens one of the prompts would be read to its end; 0 leaves that open. Return 0 where the step
        has to be without, so that it can be measured, or because an earlier one took longer.
        """
        if not n_generating:
            return int(self._alone)
        since = self._mixed_since
        changed = n_generating != self._n_generating and since >= CHANGED_AFTER
        if not self._n_generating or changed or since == MEASURE_EVERY or self._spare < 0:
            return 0
        at_once = n_to_end if n_to_end * self._token_seconds <= PAUSE else 0
        return max(int(self._chunk), at_once)

    def computed(self, n_generating: int, n_prompt: int, seconds: float) -> None:
        """Take note of a step in which so many sequences generated and so many tokens of prompts were read."""
        if not n_generating:
            self._read(n_prompt, seconds)
            if self._adapts:
                self._alone = max(LEAST_ALONE, _scaled(self._alone, ALONE_SECONDS, n_prompt, seconds))
            return
        if not n_prompt:
            known = n_generating == self._n_generating
            self._generating_seconds = (self._generating_seconds + seconds) / 2 if known else seconds
            self._n_generating = n_generating
            self._mixed_since = 0
        allowed = max(SLOWDOWN * self._generating_seconds, UNNOTICED_SECONDS)
        self._spare = max(-PAUSE, min(self._spare + allowed - seconds, PAUSE))
        if not n_prompt:
            return
        self._mixed_since += 1
        self._read(n_prompt, seconds - self._generating_seconds)
        if n_prompt <= self._chunk:
            self._chunk = max(1.0, _scaled(self._chunk, allowed, n_prompt, seconds))

    def _read(self, n_tokens: int, seconds: float) -> None:
        each = max(seconds, 0.0) / max(n_tokens, 1)
        self._token_seconds = each if math.isinf(self._token_seconds) else (self._token_seconds + each) / 2


def _scaled(chunk: float, allowed: float, n_prompt: int, seconds: float) -> float:
    """The chunk after a step that read `n_prompt` tokens in so many seconds and was allowed to take others."""
    scale = allowed / max(seconds, 1e-9)
    if scale < 1 or n_prompt >= int(chunk):  # that the short rest of a prompt was quick says nothing
        return chunk * min(max(scale, 0.5), 2.0)
    return chunk
