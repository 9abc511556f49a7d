"""Bytes as the fewest tokens of a vocabulary, whatever its tokenizer would make of them."""

from collections.abc import Mapping, Sequence

KEPT = 1000
"""Texts whose tokens are remembered: an answer that nears its end asks for the same ones again and again."""


class Segmentation:
    """Of the tokens that stand for text. `pieces` are their bytes by id; a special token has none."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._ids: Mapping[bytes, int] = {text: token for token, text in enumerate(pieces) if text}
        self._lengths = sorted({len(text) for text in self._ids})
        self._known: dict[bytes, list[int]] = {}
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        self.has_all_bytes = not missing
        """Whether no text has more tokens than bytes."""

    def fewest(self, text: bytes) -> list[int] | None:
        """The ids of the fewest tokens that are `text`; None where the vocabulary has none for a part of it."""
        found = self._known.get(text) or self._found(text)
        if found is not None:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[text] = found
        return found

    def _found(self, text: bytes) -> list[int] | None:
        n = len(text)
        counts = [n + 1] * n + [0]
        """By place, how many tokens the text has from there on; n + 1 where there are none for it."""
        first = [b""] * n
        for start in reversed(range(n)):
            for length in self._lengths:
                if start + length > n:
                    break
                piece = text[start : start + length]
                if counts[start + length] + 1 < counts[start] and piece in self._ids:
                    counts[start], first[start] = counts[start + length] + 1, piece
        if counts[0] > n:
            return None
        ids, start = [], 0
        while start < n:
            ids.append(self._ids[first[start]])
            start += len(first[start])
        return ids
