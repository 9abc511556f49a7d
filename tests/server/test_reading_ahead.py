"""What is typed on a page, and what every conversation begins with, are computed before anybody asks."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.server.support import Running, serving
from tests.support.engines import GREEDY, ONE, PAIRS, engine_of, hold, is_response, long_prompt, until, until_read
from weblab_local.chat.session import OPEN_TOKENS
from weblab_local.engine.engine import Engine
from weblab_local.engine.prompt import RESPONSE
from weblab_local.server import reading_ahead

CARD = next(pair for pair in PAIRS if pair.instruction == "大規模言語モデルについて説明してください。")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with engine_of(2) as engine:
        yield engine


@pytest.fixture
def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """The prompts that the server has had read ahead."""
    prompts: list[Sequence[int]] = []
    read_ahead = engine.read_ahead

    def noted(prompt: Sequence[int]) -> None:
        read_ahead(prompt)
        prompts.append(prompt)

    monkeypatch.setattr(engine, "read_ahead", noted)
    return prompts


def read(server: Running, messages: Sequence[dict[str, str]], **fields: Any) -> int:
    with server.http as http:
        return http.post("/v1/read_ahead", json={"messages": messages, **fields}).status_code


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def cached(server: Running, messages: Any) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them were there."""
    usage = server.client.chat.completions.create(
        model="default", messages=messages, temperature=0, max_tokens=200
    ).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0


def test_the_preamble_is_there_before_the_first_question(engine: Engine, asked: list[Sequence[int]]) -> None:
    with serving(engine, read_ahead=True) as server:
        until(lambda: asked)
        until_read(engine)
        assert cached(server, [user(CARD.instruction)])[1] == len(asked[0]) > 10


def test_what_is_typed_is_read_and_the_answer_is_the_same(engine: Engine, asked: list[Sequence[int]]) -> None:
    before = [
        {"role": "system", "content": "短く答えてください。"},
        user("Say hello."),
        {"role": "assistant", "content": "Hello."},
    ]
    with serving(engine, read_ahead=True) as server:
        for n in range(len(CARD.instruction) + 1):
            assert read(server, [*before, user(CARD.instruction[:n])]) == 204
        n_end = len(engine.tokenize(RESPONSE))
        newest = engine.tokenize(CARD.instruction)[-OPEN_TOKENS - 1]
        until(lambda: newest in asked[-1])
        until_read(engine)
        n_tokens, n_cached = cached(server, [*before, user(CARD.instruction)])
        assert n_cached >= n_tokens - n_end - OPEN_TOKENS


def test_after_a_pause_all_of_it_is_read(engine: Engine, asked: list[Sequence[int]]) -> None:
    with serving(engine, read_ahead=True) as server:
        until(lambda: asked)
        read(server, [user(CARD.instruction)], finished=True)
        until(lambda: len(asked) == 2)
        until_read(engine)
        n_tokens, n_cached = cached(server, [user(CARD.instruction)])
        assert n_cached == n_tokens - 1


def test_it_waits_for_nobody_and_nobody_for_it(engine: Engine, asked: list[Sequence[int]]) -> None:
    with serving(engine, read_ahead=True) as server:
        until(lambda: asked)
        gate, held = hold(engine)
        read(server, [user("長い話です。" * 100)])
        until(lambda: len(asked) == 2)
        assert not engine._scheduler._ahead
        gate.open()
        held.cancel()
        assert is_response(engine.generate(CARD.instruction, GREEDY), CARD)


@pytest.mark.parametrize("on_battery", [False, True])
def test_it_is_off_where_that_was_asked_for_and_on_the_battery(
    engine: Engine, asked: list[Sequence[int]], monkeypatch: pytest.MonkeyPatch, on_battery: bool
) -> None:
    monkeypatch.setattr(reading_ahead, "on_battery", lambda: on_battery)
    with serving(engine, read_ahead=on_battery) as server:
        assert read(server, [user(CARD.instruction)]) == 204
        assert server.client.models.list().data[0].model_extra["reads_ahead"] is False  # type: ignore[index]
        assert engine.generate(long_prompt(50), ONE, raw=True).stats.cached_tokens == 0
    assert asked == []


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "tool", "content": "a"}], [user("a")] * 3000, "text"],
)
def test_what_is_no_conversation_is_refused(engine: Engine, messages: Any) -> None:
    with serving(engine, read_ahead=True) as server:
        assert read(server, messages) == 400


def test_what_does_not_fit_is_let_be(engine: Engine, asked: list[Sequence[int]]) -> None:
    tried: list[str] = []
    tokenize = engine.tokenize

    def noted(text: str, limit: int | None = None, *, special: bool = False) -> list[int]:
        tried.append(text)
        return tokenize(text, limit, special=special)

    with serving(engine, read_ahead=True) as server, pytest.MonkeyPatch.context() as patched:
        until(lambda: asked)
        patched.setattr(engine, "tokenize", noted)
        for messages in ([user("長い話です。" * 5000)], [user("b"), {"role": "assistant", "content": "a"}]):
            assert read(server, messages) == 204
        until(lambda: any("長い話です。" in text for text in tried))
        assert cached(server, [user(CARD.instruction)])[0] > 0
    assert len(asked) == 1
