"""instructor, in its mode for JSON schemas; its default mode asks for a tool's call."""

from typing import Any

import instructor
import openai
import pytest

from tests.clients.environments import INSTRUCTOR as CLIENT  # noqa: F401
from tests.clients.support import KEY, MODEL, Mountain, Server, messages

JSON_SCHEMA = pytest.mark.parametrize("way", ["Mode.JSON_SCHEMA"])
ASKED: dict[str, Any] = {"response_model": Mountain, "messages": messages(), "max_retries": 0}


@JSON_SCHEMA
def test_structured(server: Server, way: str) -> None:
    mode = instructor.Mode[way.removeprefix("Mode.")]
    client = instructor.from_openai(openai.OpenAI(base_url=server.v1, api_key=KEY), mode=mode)
    assert isinstance(client.create(model=MODEL, **ASKED), Mountain)


@pytest.mark.parametrize("way", ["create_partial"])
def test_streamed(server: Server, way: str) -> None:
    mode = instructor.Mode.JSON_SCHEMA
    client: Any = instructor.from_openai(openai.OpenAI(base_url=server.v1, api_key=KEY), mode=mode)
    partial = list(getattr(client, way)(model=MODEL, **ASKED))
    assert len(partial) > 1
    assert Mountain.model_validate(partial[-1].model_dump())


@pytest.mark.parametrize("way", ["from_provider"])
def test_by_its_provider(server: Server, way: str) -> None:
    mode = instructor.Mode.JSON_SCHEMA
    client = getattr(instructor, way)(f"openai/{MODEL}", base_url=server.v1, api_key=KEY, mode=mode)
    assert isinstance(client.create(**ASKED), Mountain)
