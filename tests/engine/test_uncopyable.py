"""Copies and pickles of what is loaded in this process are refused by name; what was answered can be handed on."""

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.engines import GREEDY, SHORT_ANSWERS, engine_of
from weblab_local.chat.session import ChatSession
from weblab_local.engine.engine import Engine
from weblab_local.errors import CopyError

QUESTION = SHORT_ANSWERS[0].instruction
WAYS: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, pickle.dumps]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of(1) as engine:
        yield engine


def refused(value: Any, name: str, remedy: str) -> None:
    for way in WAYS:
        with pytest.raises(CopyError, match=f"^{name} can be neither copied nor pickled") as caught:
            way(value)
        assert remedy in caught.value.remedy
        assert isinstance(caught.value, TypeError)  # which those expect who copy or pickle what they are given


def test_an_engine(engine: Engine) -> None:
    refused(engine, "Engine", "weblab_local.load()")
    assert engine.generate(QUESTION, GREEDY).finish_reason == "stop"


def test_a_conversation_is_copied_without_its_engine(engine: Engine) -> None:
    chat = engine.chat("簡潔に。")
    chat.send(QUESTION, GREEDY)
    refused(chat, "ChatSession", "ChatSession.from_dict(engine, chat.to_dict())")
    copied = ChatSession.from_dict(engine, pickle.loads(pickle.dumps(chat.to_dict())))
    assert (copied.turns, copied.system) == (chat.turns, chat.system)


def test_running_answers(engine: Engine) -> None:
    with engine.stream(QUESTION, GREEDY) as generation:
        refused(generation, "Generation", "chunks")
    with engine.chat().stream(QUESTION, GREEDY) as reply:
        refused(reply, "ReplyStream", "chunks")

    async def run() -> None:
        async with engine.astream(QUESTION, GREEDY) as generation:
            refused(generation, "AsyncGeneration", "chunks")

    asyncio.run(run())


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_what_was_answered_can_be_copied(engine: Engine, way: Callable[[Any], Any]) -> None:
    chunks = list(engine.stream(QUESTION, GREEDY))
    assert way(chunks) == chunks
    done = engine.generate(QUESTION, GREEDY, logprobs=1)
    assert way(done) == done
    reply = engine.chat().send(QUESTION, GREEDY)
    assert way(reply) == reply
