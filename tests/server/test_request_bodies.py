"""Large bodies that are wrong in every entry: pydantic is made to stop at the first, and so takes little time."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tests.server.support import Running, serving, user
from weblab_local.engine.engine import Engine
from weblab_local.server.fields import MOST_NAMES
from weblab_local.server.messages import MOST_PARTS
from weblab_local.server.request_bodies import ChatCompletionRequest, CompletionRequest

ENTRIES = 20_000
MOST_ERRORS = 4
"""One for each form that a field may have."""

CHAT = {"messages": user("x")}
SCHEMA = {"name": "x", "schema": {}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def numbered(n: int, value: Any = 0) -> dict[str, Any]:
    return {str(number): value for number in range(n)}


def text_parts(n: int) -> list[Any]:
    return [{"type": "text", "text": "x"}] * n


LARGE: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "empty parts": ("chat", lambda n: {"messages": user([{}] * n)}),
    "parts that are numbers": ("chat", lambda n: {"messages": user([1] * n)}),
    "good parts, too many": ("chat", lambda n: {"messages": user(text_parts(n))}),
    "messages without fields": ("chat", lambda n: {"messages": [{}] * n}),
    "messages of bad parts": ("chat", lambda n: {"messages": user([{}] * 20) * (n // 20)}),
    "a message of unknown fields alone": ("chat", lambda n: {"messages": [*CHAT["messages"], numbered(n)]}),
    "biases that are texts": ("chat", lambda n: CHAT | {"logit_bias": numbered(n, "x")}),
    "biases, too many": ("chat", lambda n: CHAT | {"logit_bias": numbered(n)}),
    "stops that are numbers": ("chat", lambda n: CHAT | {"stop": [1] * n}),
    "lists of texts": ("text", lambda n: {"prompt": [[""] * (n // 16)] * 16}),
    "ids and a text": ("text", lambda n: {"prompt": [*[[1] * (n // 16)] * 15, [*[1] * (n // 16), ""]]}),
    "prompts that are objects": ("text", lambda n: {"prompt": [{}] * n}),
    "prompts, too many": ("text", lambda n: {"prompt": ["x"] * n}),
}
UNKNOWN: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "fields": ("", lambda n: CHAT | numbered(n)),
    "fields of a message": ("messages.", lambda n: {"messages": [*user("x", "y"), user("z")[0] | numbered(n)]}),
    "fields of a part": ("messages.content.", lambda n: {"messages": user([text_parts(1)[0] | numbered(n)])}),
    "fields of a format": (
        "response_format.json_schema.",
        lambda n: CHAT | {"response_format": {"type": "json_schema", "json_schema": SCHEMA | numbered(n)}},
    ),
}
"""What is accepted, and the place of what is named then."""
MODELS: dict[str, type[BaseModel]] = {"chat": ChatCompletionRequest, "text": CompletionRequest}
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}


def n_errors(kind: str, body: object) -> int:
    try:
        MODELS[kind].model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("name", LARGE)
def test_a_body_that_is_all_wrong_has_few_errors(server: Running, name: str) -> None:
    kind, body = LARGE[name]
    assert 0 < n_errors(kind, body(ENTRIES)) <= MOST_ERRORS
    with server.http as http:
        response = http.post(PATHS[kind], json=body(ENTRIES))
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "place",
    [
        lambda entry, n: ("chat", {"messages": [entry] * n}),
        lambda entry, n: ("chat", {"messages": user([entry] * n)}),
        lambda entry, n: ("chat", CHAT | {"stop": [entry] * n}),
        lambda entry, n: ("chat", CHAT | {"logit_bias": numbered(n, entry)}),
        lambda entry, n: ("chat", CHAT | {"response_format": numbered(n, entry) | {"type": "text"}}),
        lambda entry, n: ("chat", CHAT | {"stream": True, "stream_options": numbered(n, entry)}),
        lambda entry, n: ("text", {"prompt": [entry] * n}),
        lambda entry, n: ("text", {"prompt": [[entry] * n]}),
    ],
    ids=["messages", "parts", "stop", "logit_bias", "response_format", "stream_options", "prompts", "ids"],
)
@settings(max_examples=60, deadline=None)
@given(entry=JSON)
def test_more_of_the_same_is_no_more_errors(place: Callable[[Any, int], tuple[str, Any]], entry: Any) -> None:
    assert n_errors(*place(entry, 300)) <= max(n_errors(*place(entry, 1)), MOST_ERRORS)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_body_of_unknown_fields_is_answered_with_the_first_of_their_names(server: Running, name: str) -> None:
    place, body = UNKNOWN[name]
    with server.http as http:
        done = http.post(PATHS["chat"], json=body(ENTRIES) | {"max_tokens": 2}).json()
    assert done["weblab"]["ignored"] == [f"{place}{number}" for number in range(MOST_NAMES)]


def test_a_strict_server_refuses_the_first_of_them(engine: Engine) -> None:
    with serving(engine, strict=True) as strict, strict.http as http:
        body = CHAT | {"zeta": 1} | numbered(ENTRIES)
        found = [http.post(PATHS["chat"], json=body).json()]
        found += [http.post(PATHS["chat"], json=UNKNOWN[name][1](ENTRIES)).json() for name in UNKNOWN]
    assert [one["error"]["param"] for one in found] == [
        "zeta",
        "0",
        "messages.2.0",
        "messages.0.content.0.0",
        "response_format.json_schema.0",
    ]


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        (CHAT | {"logit_bias": {"5": 1.5, "7": "x", "8": "y"}}, "logit_bias.7", "number"),
        (CHAT | {"logit_bias": numbered(3000)}, "logit_bias", "at most 2048 items after validation, not 3000"),
        ({"messages": user(text_parts(MOST_PARTS + 1))}, "messages.0.content", "at most 2048 items"),
        ({"messages": [*user("x"), {"role": "tool", "content": "x"}, 5]}, "messages.1.role", "assistant"),
    ],
    ids=["the first bad bias", "how many biases", "parts", "the first bad message"],
)
def test_the_first_complaint_is_named(server: Running, body: Any, param: str, word: str) -> None:
    with server.http as http:
        error = http.post(PATHS["chat"], json=body).json()["error"]
    assert error["param"] == param
    assert word in error["message"]


def test_as_many_parts_as_may_be(server: Running) -> None:
    assert n_errors("chat", {"messages": user(text_parts(MOST_PARTS))}) == 0
    parts = [{"type": "text", "text": letter} for letter in "日本の首都は？"]
    with server.http as http:
        asked = [{"messages": user(content), "max_tokens": 1} for content in (parts, "日本の首都は？")]
        usages = [http.post(PATHS["chat"], json=body).json()["usage"]["prompt_tokens"] for body in asked]
    assert usages[0] == usages[1]
