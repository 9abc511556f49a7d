"""The end tokens of a model that has more of them than llama.cpp has keys for: in a key of our own, as text."""

import re
from collections.abc import Iterable

END_TOKENS_KEY = "weblab_local.tokenizer.end_token_ids"
"""All tokens that end a text; only in files with more than three."""


def to_text(ids: Iterable[int]) -> str:
    """Return the key's value: the ids in decimal with spaces between."""
    return " ".join(map(str, ids))


def from_text(text: bytes) -> frozenset[int]:
    """Return the ids in the key's value; what is no number is passed over."""
    return frozenset(int(number) for number in re.findall(rb"\d{1,9}", text))
