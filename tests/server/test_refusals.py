"""Requests that cannot be answered: OpenAI's error object with a name, never a 5xx, never a silent guess."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.support import Running, post, serving, user
from tests.support.engines import PAIRS
from weblab_local.engine.engine import Engine

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def strict(engine: Engine) -> Iterator[Running]:
    """A server that honours a field or refuses it."""
    with serving(engine, strict=True) as running:
        yield running


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def error(server: Running, body: Any, path: str = CHAT) -> tuple[int, dict[str, Any]]:
    """The status and the error object that a body gets; bytes are sent as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with server.http as http:
        response = http.post(path, content=content, headers={"Content-Type": "application/json"})
    found = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return response.status_code, found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}}),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("grammar", 'root ::= "a"'),
        ("json_schema", {"type": "object"}),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a*"),
        ("guided_choice", ["a", "b"]),
        ("guided_grammar", 'root ::= "a"'),
        ("structured_outputs", {"choice": ["a"]}),
    ],
)
def test_what_would_make_the_answer_another_one_is_refused_by_name(server: Running, field: str, value: Any) -> None:
    status, found = error(server, {"messages": user("x"), "tools": [TOOL], field: value})
    assert (status, found["code"], found["param"]) == (400, "unsupported_parameter", field)
    assert field in found["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_who_forces_a_tool_for_an_object_is_told_what_gives_one(server: Running, path: str) -> None:
    """As instructor and pydantic-ai do, unless they are told otherwise."""
    asked = {"messages": user("x")} if "chat" in path else {"input": "x"}
    _status, found = error(server, asked | {"tools": [TOOL], "tool_choice": "required"}, path)
    assert "ask for a JSON schema" in found["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [TOOL]),
        ("tool_choice", "auto"),
        ("functions", []),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("web_search_options", {}),
        ("parallel_tool_calls", True),
        ("store", True),
        ("no_such_field", 1),
        ("stream_options", {"include_usage": True}),
        ("top_logprobs", 3),
    ],
)
def test_a_strict_server_refuses_what_it_would_not_honour(strict: Running, field: str, value: Any) -> None:
    status, found = error(strict, {"messages": user("x"), field: value})
    assert (status, found["code"], found["param"]) == (400, "unsupported_parameter", field)


def test_a_strict_server_names_the_place_in_a_message(strict: Running) -> None:
    messages = [*user("x", "y"), {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]
    assert error(strict, {"messages": messages})[1]["param"] == "messages.2.content.0.cache_control"
    assert error(strict, {"messages": [{"role": "user", "content": "x", "name": "y"}]})[1]["param"] == "messages.0.name"
    with strict.http as http:
        done = http.post(CHAT, json={"messages": user("x"), "modalities": ["text"], "user": "me", "max_tokens": 1})
    assert done.json()["weblab"]["ignored"] == []


def test_a_null_is_as_good_as_nothing(server: Running) -> None:
    body = {"messages": user(PAIRS[0].instruction), "temperature": 0, "tools": None, "stop": None, "seed": None}
    with server.http as http:
        done = http.post(CHAT, json=body).json()
    assert done["choices"][0]["message"]["content"] == PAIRS[0].response


@pytest.mark.parametrize(
    ("messages", "param", "word"),
    [
        ([], "messages", ""),
        ("x", "messages", ""),
        ([{"role": "user"}], "messages.0.content", ""),
        ([{"role": "tool", "content": "x"}], "messages.0.role", ""),
        ([*user("x"), {"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages.1.tool_calls", "not supported"),
        ([*user("x"), {"role": "assistant", "function_call": {"name": "f"}}], "messages.1.function_call", "function"),
        ([*user("x"), {"role": "assistant", "audio": {"id": "1"}}, *user("y")], "messages.1.audio", "audio"),
        ([{"role": "user", "content": [IMAGE]}], "messages.0.content", "image_url"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages.0.content", "audio"),
        ([{"role": "user", "content": 5}], "messages", ""),
        ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "messages.0.content", "file"),
    ],
)
def test_messages_that_are_no_conversation(server: Running, messages: Any, param: str, word: str) -> None:
    status, found = error(server, {"messages": messages})
    assert (status, found["type"]) == (400, "invalid_request_error")
    assert found["param"].startswith(param)
    assert word in found["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "0.7"),
        ("top_p", 1.5),
        ("n", 0),
        ("n", 10**9),
        ("n", 1.5),
        ("max_tokens", -2),
        ("max_tokens", 10**30),
        ("max_tokens", 1.5),
        ("seed", True),
        ("seed", 0.5),
        ("top_k", -2),
        ("stop", ["x"] * 17),
        ("continue_final_message", True),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"99999": 1}),
        ("logit_bias", {"5": 1e300}),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/\ud800"}}}),
        ("messages", user("a" + "\u0300\u0316" * 5000)),
        ("messages", [1] * 3000),
        ("logit_bias", {str(token): 1 for token in range(2999)}),
        ("messages", user("half a surrogate pair: \ud800")),
        ("model", "\ud800"),
    ],
)
def test_values_that_make_no_sense(server: Running, field: str, value: Any) -> None:
    status, found = error(server, {"messages": user("x"), field: value})
    assert (status, found["type"]) in ((400, "invalid_request_error"), (404, "invalid_request_error"))
    assert found["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": ' + b"[" * 20000 + b"]" * 20000 + b"}",
    ],
    ids=["nothing", "cut", "a list", "null", "a number", "a text", "no UTF-8", "NaN", "infinity", "digits", "deep"],
)
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    status, found = error(server, body)
    assert (status, found["type"]) == (400, "invalid_request_error")


def test_a_body_that_is_too_large(engine: Engine) -> None:
    with serving(engine, max_body=2000) as small:
        assert error(small, {"messages": user("x" * 2000)})[0] == 413

        def pieces() -> Any:
            for _ in range(100):
                yield b" " * 100

        with small.http as http:
            chunked = http.post(CHAT, content=pieces(), headers={"Content-Type": "application/json"})
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
        assert error(small, {"messages": []})[0] == 400


def test_a_client_that_sends_all_of_too_large_a_body_gets_the_refusal(engine: Engine) -> None:
    """The connection is not closed on what is still being sent, which would lose the response."""
    request = post(CHAT, {"messages": user("x" * 5_000_000)})
    with serving(engine, max_body=2000) as small, small.raw(request[:1000]) as connection:
        assert connection.recv(12) == b"HTTP/1.1 413"
        connection.sendall(request[1000:])
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 200" in b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/", 405), ("GET", "/docs", 404)],
)
def test_addresses_that_are_none(server: Running, method: str, path: str, status: int) -> None:
    with server.http as http:
        response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] in ("not_found", "method_not_allowed")


def test_the_official_client_raises_its_own_errors(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(model="default", messages=user("x"), temperature=-1)
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_value")
