"""Where the end of a text stood before: an index over tokens that grows with them and is searched without rereading.

Hash chains, as LZ77 compressors have them: for each pair of tokens the place behind its latest occurrence, and for each
place the one before it of the same pair. A search follows the chain of a text's last two tokens.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

PAIR = 2
"""Tokens that have to be the same for a place to be looked at."""

MOST_PLACES = 32
"""Places that a search looks at, the latest first."""

LONG_ENOUGH = 32
"""Tokens that are compared at each: an end that is as long is taken at once."""


class Match(NamedTuple):
    """The last `length` tokens of a text stand before `place` in an index too, and more tokens behind them."""

    length: int
    place: int


class SuffixIndex:
    """Tokens in their order. Adding one and searching take the same time however many there are."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._latest: dict[tuple[int, int], int] = {}
        self._before: list[int] = [0]
        """By place, the one before it of the same pair; 0: none."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in tokens:
            self.tokens.append(token)
            place = len(self.tokens)
            if place < PAIR:
                self._before.append(0)
                continue
            pair = (self.tokens[-2], token)
            self._before.append(self._latest.get(pair, 0))
            self._latest[pair] = place

    def match(self, text: Sequence[int]) -> Match | None:
        """Find the longest end of `text`, which may be these tokens themselves; of several equally long the latest.

        None where its last two tokens stand nowhere before another token.
        """
        if len(text) < PAIR:
            return None
        best: Match | None = None
        place = self._latest.get((text[-2], text[-1]), 0)
        for _ in range(MOST_PLACES):
            if not place or (best is not None and best.length == LONG_ENOUGH):
                break
            if place < len(self.tokens):
                length = self._common(text, place)
                if best is None or length > best.length:
                    best = Match(length, place)
            place = self._before[place]
        return best

    def following(self, place: int, n: int) -> list[int]:
        """Return the `n` tokens behind `place`; where these end, they are taken to go on as they did from there on."""
        return list(islice(cycle(self.tokens[place : place + n]), n))

    def _common(self, text: Sequence[int], place: int) -> int:
        """How many of the last tokens of `text` stand before `place` too; the pair does."""
        most = min(place, len(text), LONG_ENOUGH)
        length = PAIR
        while length < most and self.tokens[place - 1 - length] == text[-1 - length]:
            length += 1
        return length
