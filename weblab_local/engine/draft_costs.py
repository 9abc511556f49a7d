"""What a longer batch costs here, and how often guesses come true: from both follows how long drafts should be.

Reading the weights may take most of a step's time, and a few tokens more then cost little; or each token may cost as
much as the first. It depends on the model, the machine and the length of the context, so it is measured while running,
by the size of the batch. Nothing is assumed but that a first short draft is worth a try.
"""

from bisect import bisect_right
from collections.abc import Sequence

MOST_TOKENS = 16
"""Tokens of a step with drafts, at most."""

FIRST_TOKENS = 4
"""Tokens of the first ones: what they cost says whether longer ones are worth a try."""

FIRST_SHARE = 0.1
"""What a token more is taken to cost, in steps without it, before any was measured."""

WORTHWHILE = 1.03
"""Times as many tokens in the same time that a draft has to promise: less is within what cannot be measured."""

LEAST_SECONDS = 1e-6
"""What a step is taken to last where the clock did not move."""

OUTDATED = 512
"""Steps after which the cost of a batch that was not computed since is unknown again."""

CHECK_EVERY = 16
"""Steps between two looks at what is outdated."""

OWN, COMMON = 0.3, 0.1
"""How much a measurement moves what is known of batches of its size, and of all others: longer contexts and other
programs make all of them slower."""


class BatchCosts:
    """Seconds that batches take, by their number of tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}
        self._n_steps = 0

    def computed(self, n_tokens: int, seconds: float) -> None:
        """Take note of a step without prompts."""
        self._n_steps += 1
        seconds = max(seconds, LEAST_SECONDS)
        change = seconds / self._seconds.get(n_tokens, seconds)
        common = change**COMMON
        for size in self._seconds:
            self._seconds[size] *= common
        self._seconds[n_tokens] = self._seconds.get(n_tokens, seconds) * change ** (OWN - COMMON)
        self._measured[n_tokens] = self._n_steps
        if self._n_steps % CHECK_EVERY == 0:
            for size in [size for size, step in self._measured.items() if self._n_steps - step > OUTDATED]:
                del self._seconds[size], self._measured[size]

    def seconds(self, n_tokens: int) -> float:
        """Return what a batch takes: as measured, between two that were, or as much more as those between them did."""
        if n_tokens in self._seconds:
            return self._seconds[n_tokens]
        sizes = sorted(self._seconds)
        above = bisect_right(sizes, n_tokens)
        if above == 0:
            return self._seconds[sizes[0]]
        if above < len(sizes):
            low, high = sizes[above - 1], sizes[above]
            share = (n_tokens - low) / (high - low)
            return (1 - share) * self._seconds[low] + share * self._seconds[high]
        low, high = sizes[0], sizes[-1]
        each = FIRST_SHARE * self._seconds[low] / low
        if high > low:
            each = max(self._seconds[high] - self._seconds[low], 0.0) / (high - low)
        return self._seconds[high] + (n_tokens - high) * each

    def best_length(self, n_generating: int, odds: Sequence[float]) -> int:
        """Return how many drafted tokens give the most tokens in the same time, beside one of each generation.

        `odds` are the probabilities that they are kept, the greatest first.
        """
        if n_generating not in self._seconds:
            return 0
        room = min(max(FIRST_TOKENS, 2 * max(self._seconds)), MOST_TOKENS) - n_generating
        best, most = 0, WORTHWHILE * n_generating / self.seconds(n_generating)
        expected = float(n_generating)
        for n_drafted, probability in enumerate(odds[: max(room, 0)], 1):
            expected += probability
            speed = expected / self.seconds(n_generating + n_drafted)
            if speed > most:
                best, most = n_drafted, speed
        return best


class Acceptance:
    """How often the token was chosen that had followed before, by how many tokens before it were the same."""

    BOUNDS = (3, 4, 6, 9, 16)
    """Where counting begins anew: ends of 2, 3, 4 to 5, 6 to 8, 9 to 15 and more tokens."""

    START = (0.3, 0.4, 0.5, 0.6, 0.8, 0.9)
    """What is assumed before anything was seen."""

    WEIGHT = 4.0
    """In so many tokens."""

    MEMORY = 0.98
    """What is left of the past with each token."""

    def __init__(self) -> None:
        self._seen = [self.WEIGHT] * len(self.START)
        self._accepted = [self.WEIGHT * share for share in self.START]

    def of(self, length: int) -> float:
        """Return the probability that after `length` equal tokens the next one is the same too."""
        kind = bisect_right(self.BOUNDS, length)
        return self._accepted[kind] / self._seen[kind]

    def note(self, length: int, accepted: bool) -> None:
        """Take note of whether it was."""
        kind = bisect_right(self.BOUNDS, length)
        self._seen[kind] = self.MEMORY * self._seen[kind] + 1
        self._accepted[kind] = self.MEMORY * self._accepted[kind] + accepted
