"""LangChain's ChatOpenAI, over chat completions and over the Responses API."""

from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from tests.clients.environments import LANGCHAIN as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server

BOTH = pytest.mark.parametrize("way", ["ChatOpenAI", "use_responses_api"])


def model(server: Server, way: str = "ChatOpenAI") -> Any:
    return ChatOpenAI(
        model=MODEL, base_url=server.v1, api_key=KEY, temperature=0, use_responses_api=way == "use_responses_api"
    )


@BOTH
def test_plain(server: Server, way: str) -> None:
    assert model(server, way).invoke(QUESTION).text == ANSWER


@BOTH
def test_streamed(server: Server, way: str) -> None:
    pieces = [chunk.text for chunk in model(server, way).stream(QUESTION)]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@BOTH
def test_structured(server: Server, way: str) -> None:
    assert isinstance(model(server, way).with_structured_output(Mountain).invoke(QUESTION), Mountain)


@pytest.mark.parametrize("way", ["ChatPromptTemplate"])
def test_in_a_chain(server: Server, way: str) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    assert type(prompt).__name__ == way
    assert (prompt | model(server) | StrOutputParser()).invoke({"question": QUESTION}) == ANSWER


@pytest.mark.parametrize("way", ["batch"])
def test_several_at_once(server: Server, way: str) -> None:
    assert [answer.text for answer in getattr(model(server), way)([QUESTION] * 6)] == [ANSWER] * 6
