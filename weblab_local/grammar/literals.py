"""Given texts as GBNF: one of them, or a choice that says what they begin with alike only once.

llama.cpp follows every alternative that still fits; of 1,400 values with a common beginning that is 1,400 comparisons
for each token it is asked about. Said once, the beginning is one.
"""

import os
from collections.abc import Sequence
from itertools import groupby

MAX_DEPTH = 6
"""Of choices inside of choices: llama.cpp's parser calls itself for each."""

_ESCAPED = {"\\": "\\\\", '"': '\\"', "\x7f": "\\x7F"}


def literal(text: str) -> str:
    """Return `text`, which has no control characters below U+0020, as a GBNF literal."""
    return '"' + "".join(_ESCAPED.get(character, character) for character in text) + '"'


def choice(texts: Sequence[str]) -> str:
    """Return GBNF alternatives that are just these `texts`, of which there is at least one."""
    return _alternatives(sorted(set(texts)), MAX_DEPTH)


def _alternatives(texts: Sequence[str], depth: int) -> str:
    if not depth:
        return " | ".join(map(literal, texts))
    groups = (list(group) for _first, group in groupby(texts, key=lambda text: text[:1]))
    return " | ".join(_group(group, depth) for group in groups)


def _group(texts: Sequence[str], depth: int) -> str:
    """Texts that begin alike: their common beginning, then what comes after it."""
    if len(texts) == 1:
        return literal(texts[0])
    common = os.path.commonprefix([texts[0], texts[-1]])  # noqa: RUF071 (of texts; sorted, so that all share it)
    return f"{literal(common)} ({_alternatives([text[len(common) :] for text in texts], depth - 1)})"
