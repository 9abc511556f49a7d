"""OpenAI's own client for Python: chat, the Responses API, completions."""

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.clients.environments import OPENAI as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server, messages

BOTH = pytest.mark.parametrize("way", ["chat.completions", "responses"])


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as client:
        yield client


@BOTH
def test_plain(client: openai.OpenAI, way: str) -> None:
    if way == "responses":
        answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
        assert answer.output_text == ANSWER
    else:
        completion = client.chat.completions.create(model=MODEL, messages=messages(), temperature=0)
        assert completion.choices[0].message.content == ANSWER


@BOTH
def test_streamed(client: openai.OpenAI, way: str) -> None:
    if way == "responses":
        with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    else:
        chunks = client.chat.completions.create(model=MODEL, messages=messages(), temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@BOTH
def test_structured(client: openai.OpenAI, way: str) -> None:
    if way == "responses":
        parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Mountain).output_parsed
    else:
        completion = client.chat.completions.parse(model=MODEL, messages=messages(), response_format=Mountain)
        parsed = completion.choices[0].message.parsed
    assert isinstance(parsed, Mountain)


@pytest.mark.parametrize("way", ["AsyncOpenAI"])
def test_asynchronously(server: Server, way: str) -> None:
    async def ask() -> str | None:
        async with getattr(openai, way)(base_url=server.v1, api_key=KEY) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=messages(), temperature=0)
        content: str | None = answer.choices[0].message.content
        return content

    assert asyncio.run(ask()) == ANSWER


@pytest.mark.parametrize("way", ["models"])
def test_the_models_it_lists_answer(client: openai.OpenAI, way: str) -> None:
    for model in getattr(client, way).list():
        completion = client.chat.completions.create(model=model.id, messages=messages(), temperature=0)
        assert completion.choices[0].message.content == ANSWER
