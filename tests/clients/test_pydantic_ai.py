"""pydantic-ai, over chat completions and over the Responses API."""

import asyncio
from typing import Any

import pydantic_ai
import pytest
from pydantic_ai import Agent
from pydantic_ai.models import openai as models
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.environments import PYDANTIC_AI as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server

MODELS = ["OpenAIChatModel", "OpenAIResponsesModel"]
BOTH = pytest.mark.parametrize("way", MODELS)


def agent(server: Server, way: str, **options: Any) -> Any:
    model = getattr(models, way)(MODEL, provider=OpenAIProvider(base_url=server.v1, api_key=KEY))
    return Agent(model, model_settings={"temperature": 0}, **options)


@BOTH
def test_plain(server: Server, way: str) -> None:
    assert agent(server, way).run_sync(QUESTION).output == ANSWER


@BOTH
def test_streamed(server: Server, way: str) -> None:
    async def pieces() -> list[str]:
        async with agent(server, way).run_stream(QUESTION) as answer:
            return [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]

    found = asyncio.run(pieces())
    assert len(found) > 1
    assert "".join(found) == ANSWER


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", ["NativeOutput"])
def test_structured(server: Server, model: str, way: str) -> None:
    """By default it asks for a tool's call."""
    output = getattr(pydantic_ai, way)(Mountain)
    assert isinstance(agent(server, model, output_type=output).run_sync(QUESTION).output, Mountain)


@pytest.mark.parametrize("way", ["message_history"])
def test_a_conversation_goes_on(server: Server, way: str) -> None:
    asked = agent(server, "OpenAIChatModel")
    first = asked.run_sync(QUESTION)
    second = asked.run_sync(QUESTION, **{way: first.all_messages()})
    assert [len(message.parts) for message in second.all_messages()] == [1] * 4
    assert second.usage.input_tokens > first.usage.input_tokens
