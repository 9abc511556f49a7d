"""Structured answers in every API: with any number of tokens that allows one, the clients parse what comes."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.server.support import Running, user


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    tags: list[str]
    friend: "Person | None" = None


SHORTEST = '{"name":"","tags":[],"friend":null}'
BUDGETS = [len(SHORTEST), len(SHORTEST) + 1, 60, 120]
"""Tokens: there is one for every byte, so these allow it."""


@pytest.mark.parametrize("max_tokens", BUDGETS)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_the_clients_parse_never_raises_for_length(server: Running, max_tokens: int, temperature: float) -> None:
    options: dict[str, Any] = {"model": "default", "temperature": temperature, "seed": 1}
    chat = server.client.chat.completions.parse(
        messages=user("人を一人作ってください。"), response_format=Person, max_tokens=max_tokens, **options
    )
    assert isinstance(chat.choices[0].message.parsed, Person)
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage is not None
    assert chat.usage.completion_tokens <= max_tokens
    options.pop("seed")
    response = server.client.responses.parse(
        input="人を一人作ってください。", text_format=Person, max_output_tokens=max_tokens, **options
    )
    assert isinstance(response.output_parsed, Person)
    assert response.status == "completed"


def test_a_stream_parses_too(server: Running) -> None:
    with server.client.chat.completions.stream(
        model="default",
        messages=user("人を一人作ってください。"),
        response_format=Person,
        max_tokens=BUDGETS[0],
        temperature=0,
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_several_choices_each_have_their_own_tokens(server: Running) -> None:
    done = server.client.chat.completions.parse(
        model="default",
        messages=user("人"),
        response_format=Person,
        max_tokens=BUDGETS[1],
        n=3,
        temperature=1.5,
        seed=3,
    )
    assert [type(choice.message.parsed) for choice in done.choices] == [Person] * 3


def test_any_json_object_ends_as_well(server: Running) -> None:
    done = server.client.chat.completions.create(
        model="default", messages=user("JSON"), response_format={"type": "json_object"}, max_tokens=25, temperature=0
    )
    assert isinstance(json.loads(done.choices[0].message.content or ""), dict)


def test_ollamas_format(server: Running) -> None:
    body = {
        "model": "default",
        "messages": user("人"),
        "format": Person.model_json_schema(),
        "stream": False,
        "options": {"num_predict": BUDGETS[0], "temperature": 0},
    }
    with httpx.Client(base_url=server.url) as http:
        done = http.post("/api/chat", json=body).raise_for_status().json()
    assert Person.model_validate_json(done["message"]["content"])
    assert done["done_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_too_few_tokens_for_any_answer_are_refused(server: Running, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"The shortest answer that the JSON schema allows has \d+ tokens"):
        server.client.chat.completions.create(
            model="default",
            messages=user("人"),
            response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}},
            max_tokens=2,
            stream=stream,
        )
