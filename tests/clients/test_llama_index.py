"""LlamaIndex's OpenAILike."""

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from tests.clients.environments import LLAMA_INDEX as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server

ASKED = {"chat": [ChatMessage(role="user", content=QUESTION)], "complete": QUESTION}
BOTH = pytest.mark.parametrize("way", ASKED)


def model(server: Server, **options: Any) -> Any:
    return OpenAILike(
        model=MODEL, api_base=server.v1, api_key=KEY, is_chat_model=True, context_window=2048, temperature=0, **options
    )


@BOTH
def test_plain(server: Server, way: str) -> None:
    answer = getattr(model(server), way)(ASKED[way])
    assert (answer.message.content if way == "chat" else answer.text) == ANSWER


@BOTH
def test_streamed(server: Server, way: str) -> None:
    pieces = [piece.delta for piece in getattr(model(server), f"stream_{way}")(ASKED[way])]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@pytest.mark.parametrize("way", ["as_structured_llm"])
def test_structured(server: Server, way: str) -> None:
    asked = getattr(model(server, should_use_structured_outputs=True), way)(Mountain)
    assert isinstance(asked.complete(QUESTION).raw, Mountain)
