"""What will probably be asked for is computed before it is, and is in nobody's way."""

from collections.abc import Iterator, Sequence

import pytest

from tests.support.engines import (
    GREEDY,
    ONE,
    PAIRS,
    SHORT_ANSWERS,
    Gate,
    engine_of,
    is_response,
    long_prompt,
    until,
    until_read,
)
from weblab_local.chat.session import OPEN_TOKENS
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Generation, complete
from weblab_local.engine.prompt import RESPONSE
from weblab_local.engine.roster import AHEAD_REST
from weblab_local.errors import PromptError, WeblabError
from weblab_local.llama.context import BatchToken

QUESTION = "大規模言語モデルについて説明してください。"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with engine_of(1) as engine:
        yield engine


def test_what_was_read_ahead_is_not_read_again(engine: Engine) -> None:
    ids = long_prompt(300)
    engine.read_ahead(ids)
    until_read(engine)
    stats = engine.generate([*ids, 5, 6], ONE, raw=True).stats
    assert (stats.prompt_tokens, stats.cached_tokens) == (302, 300)


def test_a_request_that_begins_alike_takes_over_what_is_being_read(engine: Engine) -> None:
    ids = long_prompt(600)
    engine.read_ahead(ids)
    until(lambda: engine._scheduler._running and engine._scheduler._running[0].sequence.tokens)
    n_read = len(engine._scheduler._running[0].sequence.tokens)
    stats = engine.generate([*ids, 5], ONE, raw=True).stats
    assert n_read <= stats.cached_tokens <= 600


def test_another_request_ends_it(engine: Engine) -> None:
    ids = long_prompt(1900)
    engine.read_ahead(ids)
    until(lambda: engine._scheduler._running)
    assert is_response(engine.generate(PAIRS[0].instruction, GREEDY), PAIRS[0])
    assert engine.generate(ids, ONE, raw=True).stats.cached_tokens < 1900 - 100


def test_it_does_not_begin_beside_others() -> None:
    with engine_of(2) as engine:
        gate = Gate()
        held = engine.stream(long_prompt(200), ONE, on_progress=gate, raw=True)
        gate.wait()
        engine.read_ahead(long_prompt(300, seed=1))
        gate.open()
        complete(list(held))
        assert engine.generate(long_prompt(300, seed=1), ONE, raw=True).stats.cached_tokens == 0


def test_what_is_typed_letter_by_letter_is_read_as_it_grows(engine: Engine) -> None:
    chat = engine.chat(params=GREEDY)
    for n in range(len(QUESTION) + 1):
        chat.read_ahead(QUESTION[:n])
    until_read(engine)
    n_end = len(engine.tokenize(RESPONSE))
    reply = chat.send(QUESTION)
    assert is_response(reply, next(pair for pair in PAIRS if pair.instruction == QUESTION))
    assert reply.stats.cached_tokens >= reply.stats.prompt_tokens - n_end - OPEN_TOKENS
    chat.read_ahead(SHORT_ANSWERS[0].instruction, finished=True)
    until_read(engine)
    stats = chat.send(SHORT_ANSWERS[0].instruction).stats
    assert stats.cached_tokens == stats.prompt_tokens - 1


def test_a_machine_slower_than_the_typing_does_not_fall_behind(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever types asks for the next text before the last is read: each step goes on where the one before ended."""
    ids = long_prompt(140)
    context, steps = engine._scheduler._context, []
    decode = context.decode

    def type_on(batch: Sequence[BatchToken]) -> bool:
        steps.append(len(batch))
        for _ in range(10):
            n_typed.append(min(n_typed[-1] + 1, len(ids)))
            engine.read_ahead(ids[: n_typed[-1]])
        return decode(batch)

    n_typed = [100]
    monkeypatch.setattr(context, "decode", type_on)
    engine.read_ahead(ids[:100])
    until_read(engine)
    assert sum(steps) == len(ids)
    assert len(steps) <= 4 + 40 // AHEAD_REST
    stats = engine.generate([*ids, 5], ONE, raw=True).stats
    assert stats.cached_tokens == len(ids)


def test_a_step_of_an_older_text_is_in_nobodys_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed may be of a text that a newer one has taken over; another request ends it all the same."""
    ids = long_prompt(100)
    context = engine._scheduler._context
    decode = context.decode
    aborted: list[bool] = []

    def meanwhile(batch: Sequence[BatchToken]) -> bool:
        monkeypatch.setattr(context, "decode", decode)
        engine.read_ahead([*ids, 5])
        assert not aborted
        generations.append(engine.stream(long_prompt(20, seed=1), ONE, raw=True))
        return decode(batch)

    generations: list[Generation] = []
    monkeypatch.setattr(context, "decode", meanwhile)
    monkeypatch.setattr(context, "abort", lambda: aborted.append(True))
    engine.read_ahead(ids)
    until(lambda: generations)
    complete(list(generations[0]))
    assert aborted


def test_the_same_text_is_read_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = long_prompt(40)
    engine.read_ahead(ids)
    until_read(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler._context, "decode", lambda _batch: pytest.fail("it was computed again"))
        engine.read_ahead(ids)
        until_read(engine)
    engine.generate(long_prompt(50, seed=1), ONE, raw=True)
    engine.read_ahead(ids)
    until_read(engine)
    assert engine.generate([*ids, 5], ONE, raw=True).stats.cached_tokens == len(ids)


def test_what_does_not_fit_or_cannot_be_read_is_let_be(engine: Engine) -> None:
    chat = engine.chat()
    chat.read_ahead("長" * 3000)
    chat.read_ahead("\ud83d")
    engine.read_ahead([])
    engine.read_ahead([5] * engine.longest_sequence)
    assert engine._scheduler._ahead is None
    with pytest.raises(PromptError):
        engine.read_ahead([10**9])
    engine.close()
    with pytest.raises(WeblabError, match="closed"):
        engine.read_ahead([5])


def test_closing_does_not_wait_for_it() -> None:
    with engine_of(1) as engine:
        engine.read_ahead(long_prompt(1900))
