"""OpenAI's agents: the default model class speaks the Responses API, the other one chat completions."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import agents
import openai
import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, SQLiteSession

from tests.clients.environments import OPENAI_AGENTS as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server

BOTH = pytest.mark.parametrize("way", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
CLASSES: dict[str, Any] = {
    "OpenAIResponsesModel": OpenAIResponsesModel,
    "OpenAIChatCompletionsModel": OpenAIChatCompletionsModel,
}


def ask(server: Server, way: str, asking: Callable[[Any], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """What `asking` an agent gives. Tracing would go to OpenAI."""

    async def ask() -> Any:
        agents.set_tracing_disabled(True)
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as client:
            model = CLASSES[way](model=MODEL, openai_client=client)
            settings = ModelSettings(temperature=0)
            return await asking(Agent(name="Assistant", model=model, model_settings=settings, **options))

    return asyncio.run(ask())


@BOTH
def test_plain(server: Server, way: str) -> None:
    assert ask(server, way, lambda agent: Runner.run(agent, QUESTION)).final_output == ANSWER


@BOTH
def test_streamed(server: Server, way: str) -> None:
    async def pieces(agent: Any) -> list[str]:
        events = Runner.run_streamed(agent, QUESTION).stream_events()
        deltas = [event.data async for event in events if event.type == "raw_response_event"]
        return [delta.delta for delta in deltas if delta.type == "response.output_text.delta"]

    found = ask(server, way, pieces)
    assert len(found) > 1
    assert "".join(found) == ANSWER


@BOTH
def test_structured(server: Server, way: str) -> None:
    done = ask(server, way, lambda agent: Runner.run(agent, QUESTION), output_type=Mountain)
    assert isinstance(done.final_output, Mountain)


@pytest.mark.parametrize("way", ["set_default_openai_client"])
def test_by_default(server: Server, way: str) -> None:
    """As its documentation sets other servers, for all agents."""

    async def ask() -> Any:
        agents.set_tracing_disabled(True)
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as client:
            getattr(agents, way)(client, use_for_tracing=False)
            asked = Agent(name="Assistant", model=MODEL, model_settings=ModelSettings(temperature=0))
            return (await Runner.run(asked, QUESTION)).final_output

    assert asyncio.run(ask()) == ANSWER


@pytest.mark.parametrize("way", ["SQLiteSession"])
def test_a_session_goes_on(server: Server, way: str) -> None:
    async def twice(agent: Any) -> tuple[Any, Any]:
        session = SQLiteSession("one")
        assert type(session).__name__ == way
        first, second = [await Runner.run(agent, QUESTION, session=session) for _ in range(2)]
        return first.context_wrapper.usage, second.context_wrapper.usage

    first, second = ask(server, "OpenAIResponsesModel", twice)
    assert second.input_tokens > first.input_tokens
