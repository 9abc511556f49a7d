"""The index over tokens, against a search through all of them."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from weblab_local.engine.suffix_index import LONG_ENOUGH, MOST_PLACES, PAIR, Match, SuffixIndex

TEXT = st.lists(st.integers(0, 2), max_size=80)
"""Few tokens, so that much comes again."""


def common(text: Sequence[int], tokens: Sequence[int]) -> int:
    """With how many tokens both end, as far as they are compared."""
    most = min(len(text), len(tokens), LONG_ENOUGH)
    return max(n for n in range(most + 1) if list(text[len(text) - n :]) == list(tokens[len(tokens) - n :]))


def search(tokens: Sequence[int], text: Sequence[int]) -> Match | None:
    """What the index should find, by looking at every place."""
    places = [place for place in range(PAIR, len(tokens) + 1) if common(text, tokens[:place]) >= PAIR]
    found = [Match(common(text, tokens[:place]), place) for place in places[-MOST_PLACES:] if place < len(tokens)]
    return max(found, default=None)


@settings(deadline=None)
@given(TEXT)
def test_it_finds_where_a_growing_texts_end_stood_before(text: list[int]) -> None:
    index = SuffixIndex()
    for n, token in enumerate(text, 1):
        index.extend([token])
        assert index.match(index.tokens) == search(text[:n], text[:n])


@settings(deadline=None)
@given(TEXT, TEXT, st.integers(0, 80))
def test_it_finds_where_another_texts_end_stands(tokens: list[int], text: list[int], n_first: int) -> None:
    index = SuffixIndex()
    index.extend(tokens[:n_first])
    index.extend(tokens[n_first:])
    assert index.match(text) == search(tokens, text)


@settings(deadline=None)
@given(TEXT.filter(bool), st.integers(0, 79), st.integers(0, 20))
def test_what_followed_is_what_stands_behind_and_then_repeats_itself(tokens: list[int], place: int, n: int) -> None:
    place %= len(tokens)
    index = SuffixIndex()
    index.extend(tokens)
    continued = list(tokens)
    while len(continued) < place + n:
        continued.append(continued[len(continued) - (len(tokens) - place)])
    assert index.following(place, n) == continued[place : place + n]


def test_a_search_looks_at_no_more_places_however_long_the_text_is() -> None:
    """Tokens looked at are counted: a thousand times the text makes a search no longer."""

    class Counted(list[int]):
        looked = 0

        def __getitem__(self, key: Any) -> Any:
            type(self).looked += 1
            return super().__getitem__(key)

    counts = []
    for n_repeated in (100, 100_000):
        index = SuffixIndex()
        index.extend([1, 2, 3] * n_repeated)
        index.tokens = Counted(index.tokens)
        Counted.looked = 0
        index.match([9, 1, 2])
        counts.append(Counted.looked)
    assert counts[0] == counts[1] <= MOST_PLACES * LONG_ENOUGH
