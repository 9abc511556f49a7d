"""Bytes as the fewest tokens of a vocabulary, whatever its tokenizer would make of them."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

KEPT = 8
"""Texts whose tokens are kept: the ends of an answer that are asked for one after the other end alike."""


class _Table(NamedTuple):
    """By place in a text, the fewest tokens from there on, and the first of them."""

    text: bytes
    counts: Sequence[int]
    pieces: Sequence[bytes]


class Segmentation:
    """Of the tokens that stand for text. `pieces` are their bytes by id; a special token has none."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._ids: Mapping[bytes, int] = {text: token for token, text in enumerate(pieces) if text}
        self._lengths = sorted({len(text) for text in self._ids})
        self._tables = deque([_Table(b"", (0,), ())], maxlen=KEPT)
        self.has_all_bytes = all(bytes([byte]) in self._ids for byte in range(256))
        """Whether there are tokens for every text, and never more of them than it has bytes."""

    def fewest(self, text: bytes) -> list[int]:
        """The ids of the fewest tokens that are `text`. Needs a vocabulary that has all bytes."""
        table = self._table(text)
        start = len(table.text) - len(text)
        ids = []
        while start < len(table.text):
            ids.append(self._ids[table.pieces[start]])
            start += len(table.pieces[start])
        return ids

    def _table(self, text: bytes) -> _Table:
        """One whose text ends with `text`."""
        tables = tuple(self._tables)
        known = max(tables, key=lambda table: _common_end(table.text, text))
        common = _common_end(known.text, text)
        if common == len(text):
            return known
        counts, pieces = self._before(text, common, known.counts[len(known.text) - common :])
        table = _Table(text, counts, (*pieces, *known.pieces[len(known.text) - common :]))
        self._tables.append(table)
        return table

    def _before(self, text: bytes, common: int, counts: Sequence[int]) -> tuple[list[int], list[bytes]]:
        """The counts for all of `text`, of whose last `common` bytes they are given, and the pieces before these."""
        n, start = len(text), len(text) - common
        found = [n + 1] * start + list(counts)
        pieces = [b""] * start
        for place in reversed(range(start)):
            for length in self._lengths:
                if place + length > n:
                    break
                if found[place + length] + 1 < found[place]:
                    piece = text[place : place + length]
                    if piece in self._ids:
                        found[place], pieces[place] = found[place + length] + 1, piece
        return found, pieces


def _common_end(left: bytes, right: bytes) -> int:
    """How many bytes both end with alike."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[len(left) - middle :] == right[len(right) - middle :]:
            low = middle
        else:
            high = middle - 1
    return low
