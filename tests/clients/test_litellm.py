"""litellm, by the providers that its documentation names for such servers."""

import asyncio
from typing import Any

import litellm
import pytest

from tests.clients.environments import LITELLM as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server, messages

PROVIDERS = pytest.mark.parametrize("way", ["openai/", "hosted_vllm/", "ollama_chat/"])


def asked(server: Server, way: str) -> dict[str, Any]:
    base = server.url if way.startswith("ollama") else server.v1
    return {
        "model": f"{way}{MODEL}",
        "api_base": base,
        "api_key": KEY,
        "messages": messages(),
        "temperature": 0,
    }


@PROVIDERS
def test_plain(server: Server, way: str) -> None:
    assert litellm.completion(**asked(server, way)).choices[0].message.content == ANSWER


@PROVIDERS
def test_streamed(server: Server, way: str) -> None:
    chunks = litellm.completion(**asked(server, way), stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@PROVIDERS
def test_structured(server: Server, way: str) -> None:
    answer = litellm.completion(**asked(server, way), response_format=Mountain)
    Mountain.model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize("way", ["acompletion"])
def test_asynchronously(server: Server, way: str) -> None:
    answer: Any = asyncio.run(getattr(litellm, way)(**asked(server, "openai/")))
    assert answer.choices[0].message.content == ANSWER


@pytest.mark.parametrize("way", ["responses"])
def test_over_responses(server: Server, way: str) -> None:
    fields = asked(server, "openai/") | {"input": QUESTION}
    del fields["messages"]
    assert getattr(litellm, way)(**fields).output[0].content[0].text == ANSWER
