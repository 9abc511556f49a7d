"""Ollama's own client for Python."""

import asyncio
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.clients.environments import OLLAMA as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server, messages

GREEDY = {"temperature": 0}
HEADERS = {"Authorization": f"Bearer {KEY}"}
BOTH = pytest.mark.parametrize("way", ["chat", "generate"])


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with ollama.Client(host=server.url, headers=HEADERS) as client:
        yield client


def asked(way: str) -> dict[str, Any]:
    return {"model": MODEL} | ({"messages": messages()} if way == "chat" else {"prompt": QUESTION})


def text(answer: Any) -> str:
    return str(answer.message.content if "message" in answer else answer.response)


@BOTH
def test_plain(client: Any, way: str) -> None:
    assert text(getattr(client, way)(**asked(way), options=GREEDY)) == ANSWER


@BOTH
def test_streamed(client: Any, way: str) -> None:
    pieces = [text(piece) for piece in getattr(client, way)(**asked(way), options=GREEDY, stream=True)]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@BOTH
def test_structured(client: Any, way: str) -> None:
    Mountain.model_validate_json(text(getattr(client, way)(**asked(way), format=Mountain.model_json_schema())))


@pytest.mark.parametrize("way", ["AsyncClient"])
def test_asynchronously(server: Server, way: str) -> None:
    client = getattr(ollama, way)(host=server.url, headers=HEADERS)
    assert text(asyncio.run(client.chat(**asked("chat"), options=GREEDY))) == ANSWER


@pytest.mark.parametrize("way", ["list"])
def test_the_models_it_lists_answer(client: Any, way: str) -> None:
    for one in getattr(client, way)().models:
        assert text(client.chat(one.model, messages(), options=GREEDY)) == ANSWER
