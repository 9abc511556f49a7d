"""OpenAI's own client for Node."""

import pytest

from tests.clients.environments import OPENAI_NODE as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, Mountain, Server, from_node

BOTH = pytest.mark.parametrize("way", ["chat.completions", "responses"])


@BOTH
def test_plain(server: Server, way: str) -> None:
    assert from_node("openai.mjs", server, "plain", way) == ANSWER


@BOTH
def test_streamed(server: Server, way: str) -> None:
    pieces = from_node("openai.mjs", server, "streamed", way)
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


@BOTH
def test_structured(server: Server, way: str) -> None:
    Mountain.model_validate(from_node("openai.mjs", server, "structured", way))


@pytest.mark.parametrize("way", ["models"])
def test_the_models_it_lists(server: Server, way: str) -> None:
    assert "weblab-demo-instruction-sft" in from_node("openai.mjs", server, "other", way)
