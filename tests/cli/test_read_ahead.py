"""At a terminal, the model reads what is typed while it is typed: prompt_toolkit itself, its keys from a pipe."""

import sys
import threading
from collections.abc import Iterator

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.support.engines import GREEDY, PAIRS, engine_of, is_response, until
from weblab_local.chat.session import ChatSession
from weblab_local.cli.chat_terminal import LineReader
from weblab_local.engine.engine import Engine

FIRST, SECOND = PAIRS[0], PAIRS[1]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with engine_of(1) as engine:
        yield engine


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeInput]:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


def has_read(engine: Engine, chat: ChatSession, text: str) -> bool:
    """Whether all that the answer to `text` begins with is in the KV cache."""
    (sequence,) = engine._scheduler._cache.sequences
    return sequence.tokens == chat.fit(text, GREEDY.max_tokens)[0] and not sequence.in_use


def test_what_is_typed_is_read_before_enter(engine: Engine, keys: PipeInput) -> None:
    chat = engine.chat(params=GREEDY)
    reader = LineReader(lambda: chat)
    for pair in (FIRST, SECOND):

        def type_it(text: str = pair.instruction) -> None:
            for character in text:
                keys.send_text(character)
            until(lambda: has_read(engine, chat, text))
            keys.send_text("\r")

        typist = threading.Thread(target=type_it)
        typist.start()
        line = next(reader)
        typist.join()
        assert line == pair.instruction
        reply = chat.send(line)
        assert reply.stats.cached_tokens == reply.stats.prompt_tokens - 1
    assert is_response(engine.generate(FIRST.instruction, GREEDY), FIRST)


@pytest.mark.parametrize("text", ["/stats", FIRST.instruction])
def test_commands_are_not_read_and_nothing_is_where_it_is_switched_off(
    engine: Engine, keys: PipeInput, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    chat = engine.chat(params=GREEDY)
    asked: list[str] = []
    monkeypatch.setattr(chat, "read_ahead", lambda text="", **_: asked.append(text))
    reader = LineReader((lambda: chat) if text.startswith("/") else (lambda: None))
    keys.send_text(text + "\r")
    assert next(reader) == text
    assert asked in ([], [""])
