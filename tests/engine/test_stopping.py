"""Stop strings are found wherever text is cut, never come out, and hold back no more than they have to."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from weblab_local.engine.stopping import TURN_STOPS, StopFilter

# Few characters, so that stop strings overlap with each other and with themselves.
CHARACTERS = st.sampled_from("aab\n#指🌸")
TEXTS = st.text(CHARACTERS, max_size=30)
STOPS = st.lists(st.text(CHARACTERS, min_size=1, max_size=5), max_size=4)


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that ends first, by a look at the whole; the longest of those that end there."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


def filtered(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    """What comes out of a StopFilter for these pieces, and whether it found a stop string."""
    stop_filter = StopFilter(stops)
    out = ""
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        out += text
        if stopped:
            return out, True
    return out + stop_filter.finish(), False


@given(pieces=st.lists(TEXTS, max_size=12), stops=STOPS)
@example(pieces=["abcd", "e"], stops=["abcde", "cd"])
@example(pieces=["abcde"], stops=["abcde", "cd"])
def test_the_text_before_the_first_stop_string_comes_out(pieces: list[str], stops: list[str]) -> None:
    assert filtered(pieces, stops) == before_stop("".join(pieces), stops)


@given(text=TEXTS, stops=STOPS)
def test_it_does_not_matter_how_the_text_is_cut(text: str, stops: list[str]) -> None:
    expected = before_stop(text, stops)
    assert filtered(list(text), stops) == expected
    assert filtered([text], stops) == expected
    for cut in range(len(text)):
        assert filtered([text[:cut], text[cut:]], stops) == expected


@given(pieces=st.lists(TEXTS, max_size=12), stops=STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    seen = out = ""
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        if stopped:
            return
        seen, out = seen + piece, out + text
        beginnings = {stop[:n] for stop in stops for n in range(len(stop))} | {""}
        assert seen.startswith(out)
        assert seen[len(out) :] == max((b for b in beginnings if seen.endswith(b)), key=len)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("東京です。\n\n### 指示:\n次", "東京です。"),
        ("東京です。\n### 指示:\n次", "東京です。"),
        ("東京です。### 指示:", "東京です。"),
        ("東京です。\n\n\n### 指示:\n次", "東京です。\n"),
        ("東京です。\n\n### 指示", "東京です。\n\n### 指示"),
        ("東京です。\n\n### 応答:", "東京です。\n\n### 応答:"),
    ],
)
def test_an_answer_ends_where_the_model_begins_another_instruction(text: str, answer: str) -> None:
    assert filtered(list(text), TURN_STOPS)[0] == answer
