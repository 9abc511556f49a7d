"""Vercel's AI SDK with its provider for servers such as this one."""

import pytest

from tests.clients.environments import AI_SDK as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, Mountain, Server, from_node


@pytest.mark.parametrize("way", ["generateText"])
def test_plain(server: Server, way: str) -> None:
    assert from_node("ai.mjs", server, "plain", way) == ANSWER


@pytest.mark.parametrize("way", ["streamText"])
def test_streamed(server: Server, way: str) -> None:
    pieces = from_node("ai.mjs", server, "streamed", way)
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@pytest.mark.parametrize("way", ["Output.object", "generateObject"])
def test_structured(server: Server, way: str) -> None:
    Mountain.model_validate(from_node("ai.mjs", server, "structured", way))


@pytest.mark.parametrize("way", ["partialOutputStream"])
def test_structured_and_streamed(server: Server, way: str) -> None:
    Mountain.model_validate(from_node("ai.mjs", server, "other", way))
