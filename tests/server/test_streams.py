"""A stream before its first token has begun already, and is never silent for long; what a server says at its end."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.server.support import Running, events, post, serving, until, user
from tests.support.engines import PAIRS, PATIENCE, engine_of, hold
from weblab_local.server.admission import Admission
from weblab_local.server.connection import ENDING, KEEP_ALIVE, EventStream, LineStream

CHAT = "/v1/chat/completions"
PAIR = PAIRS[0]
GREEDY = {"messages": user(PAIR.instruction), "temperature": 0, "stream": True}


@pytest.fixture
def server() -> Iterator[Running]:
    with engine_of(n_parallel=1) as engine, serving(engine) as server:
        yield server


@pytest.mark.usefixtures("comments")
def test_headers_and_comments_come_while_the_answer_waits(server: Running) -> None:
    gate, held = hold(server.engine)
    with server.raw(post(CHAT, GREEDY)) as connection:
        data = b""
        while data.count(KEEP_ALIVE) < 2:
            data += connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\ndata:" not in data
        gate.open()
        list(held)
        while b"[DONE]" not in data:
            data += connection.recv(65536)
    lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    said = [one["choices"][0]["delta"].get("content", "") for one in events(lines)]
    assert "".join(said) == PAIR.response


@pytest.mark.parametrize("raw", [False, True])
def test_the_official_client_takes_no_notice_of_comments(server: Running, comments: list[bytes], raw: bool) -> None:
    gate, held = hold(server.engine)
    if raw:
        completion = server.client.completions.create(
            model="default", prompt=PAIR.prompt, temperature=0, stream=True, max_tokens=100
        )
        texts = (chunk.choices[0].text for chunk in completion)
    else:
        chat = server.client.chat.completions.create(
            model="default", messages=user(PAIR.instruction), temperature=0, stream=True
        )
        texts = (chunk.choices[0].delta.content or "" for chunk in chat)
    until(lambda: len(comments) > 1)
    gate.open()
    list(held)
    assert "".join(texts) == PAIR.response


def test_a_stream_that_answers_has_no_comments(server: Running) -> None:
    with server.http as http:
        text = http.post(CHAT, json=GREEDY).text
    assert all(line.startswith("data: ") for line in text.splitlines() if line)


def test_who_leaves_before_the_first_token_leaves_a_free_place(comments: list[bytes]) -> None:
    with engine_of(n_parallel=1) as engine, serving(engine, queue=0) as server, server.http as http:
        gate, held = hold(engine)
        with server.raw(post(CHAT, GREEDY)):
            until(lambda: comments)
            assert http.post(CHAT, json=GREEDY).status_code == 429
        until(lambda: engine._scheduler._waiting[0].cancelled)
        gate.open()
        list(held)
        until(lambda: http.post(CHAT, json=GREEDY).status_code == 200)


@pytest.mark.parametrize(
    ("prompt", "code"), [([5] * 2048, "context_length_exceeded"), ([[]], "invalid_value"), ("", "invalid_value")]
)
def test_what_cannot_be_prepared_still_has_its_status(server: Running, prompt: object, code: str) -> None:
    with server.http as http:
        refused = http.post("/v1/completions", json={"prompt": prompt, "stream": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


def test_what_fails_later_is_an_event_with_its_status(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object) -> None:
        raise RuntimeError("nothing that a client should read")

    monkeypatch.setattr("weblab_local.engine.choosing.Sampler", fails)
    with server.http as http:
        lines = http.post(CHAT, json=GREEDY).text.splitlines()
    said = json.loads(lines[0].removeprefix("data: "))
    assert (said["error"]["code"], said["weblab"]["status"]) == ("internal_error", 500)
    assert "nothing that" not in str(said)
    with pytest.raises(openai.APIError):
        list(server.client.chat.completions.create(model="default", messages=user("x"), stream=True))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (EventStream, ['data: {"n":1}', 'data: {"error":{', "data: [DONE]"]),
        (LineStream, ['{"n":1}', '{"error":"The server is being ended."}']),
    ],
)
def test_the_servers_end_is_told_in_each_form(kind: type[EventStream], expected: list[str]) -> None:
    async def endless() -> AsyncGenerator[Mapping[str, Any], None]:
        yield {"n": 1}
        await asyncio.Event().wait()

    async def sent() -> bytes:
        ending, data = asyncio.Event(), b""

        async def send(message: Any) -> None:
            nonlocal data
            data += message.get("body", b"")
            if data:
                ending.set()

        async def receive() -> Any:
            await asyncio.Event().wait()

        stream = kind(endless(), asyncio.Event(), Admission(1, 0).admit(1))
        await stream({ENDING: ending}, receive, send)
        return data

    lines = [line for line in asyncio.run(sent()).decode().splitlines() if line]
    assert len(lines) == len(expected)
    assert all(line.startswith(beginning) for line, beginning in zip(lines, expected, strict=True))


WHOLE: dict[str, dict[str, Any]] = {
    CHAT: {"messages": user("x")},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/api/chat": {"messages": user("x"), "stream": False},
}


@pytest.mark.parametrize("path", WHOLE)
def test_who_waits_for_a_whole_answer_is_told_that_the_server_ends(path: str) -> None:
    body = {"model": "default", **WHOLE[path]}
    with engine_of(n_parallel=1) as engine, ThreadPoolExecutor(1) as pool:
        gate, held = hold(engine)
        with serving(engine) as server:
            waiting = pool.submit(httpx2.post, f"{server.url}{path}", json=body, timeout=PATIENCE)
            until(lambda: engine._scheduler._waiting)
        told = waiting.result(PATIENCE)
        gate.open()
        list(held)
    assert told.status_code == 503
    assert "being ended" in str(told.json()["error"])
