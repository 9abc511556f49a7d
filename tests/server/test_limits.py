"""What ends a request before its answer does: no room, no time, nobody there any more."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engines import ENDLESS, LONG_ANSWERS, PAIRS, PATIENCE, Gate, engine_of, hold, running
from tests.reference import END
from tests.server.support import Running, events, post, serving, until, until_idle, user

CHAT = "/v1/chat/completions"
LONG_TEXT = "長い文章。" * 150
ENDLESS_CHAT = {"messages": user("x"), "temperature": 0, "max_tokens": 4000, "logit_bias": {str(END): -1e6}}
WAIT = 0.01


@pytest.fixture
def narrow() -> Iterator[Running]:
    """A server with one sequence and room for one request to wait."""
    with engine_of(n_parallel=1) as engine, serving(engine, queue=1) as server:
        yield server


def close(connection: socket.socket) -> None:
    """Go away at once, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


def test_beyond_the_queue_a_client_is_told_when_to_come_again(narrow: Running) -> None:
    gate, held = hold(narrow.engine)
    waiting = [narrow.raw(post(CHAT, {"messages": user(PAIRS[0].instruction), "temperature": 0})) for _ in range(2)]
    until(lambda: len(narrow.engine._scheduler._waiting) == 2)
    with narrow.http as http:
        response = http.post(CHAT, json={"messages": user("x"), "max_tokens": 1})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert 1 <= int(response.headers["retry-after"]) <= 60
    with pytest.raises(openai.RateLimitError):
        narrow.client.chat.completions.create(model="default", messages=user("x"))

    gate.open()
    list(held)
    for connection in waiting:
        assert PAIRS[0].response in answer(connection)
    assert narrow.client.chat.completions.create(model="default", messages=user("x"), max_tokens=1).choices


def answer(connection: socket.socket) -> str:
    """The content of the answer that comes on a raw connection."""
    data = b""
    with connection:
        while b"\r\n\r\n" not in data or not complete(data):
            received = connection.recv(65536)
            assert received, data
            data += received
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"])


def complete(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return len(body) >= int(lengths[0])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_its_answer_is_made(narrow: Running, stream: bool) -> None:
    connection = narrow.raw(post(CHAT, ENDLESS_CHAT | {"stream": stream}))
    until(lambda: running(narrow.engine))
    if stream:
        assert b"200 OK" in connection.recv(100)
    close(connection)
    until_idle(narrow)
    assert greedy(narrow, PAIRS[0].instruction) == PAIRS[0].response


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_its_prompt_waits_or_is_read(narrow: Running, stream: bool) -> None:
    gate, held = hold(narrow.engine)
    body = {"messages": user(LONG_TEXT), "max_tokens": 100, "stream": stream}
    connection = narrow.raw(post(CHAT, body))
    until(lambda: narrow.engine._scheduler._waiting)
    close(connection)
    until(lambda: narrow.engine._scheduler._waiting[0].cancelled)
    gate.open()
    list(held)
    until_idle(narrow)


def greedy(server: Running, instruction: str) -> str | None:
    done = server.client.chat.completions.create(model="default", messages=user(instruction), temperature=0)
    return done.choices[0].message.content


def test_others_are_not_disturbed_by_one_who_goes(server: Running) -> None:
    goes = server.raw(post(CHAT, ENDLESS_CHAT | {"stream": True, "max_tokens": 500}))
    assert b"200 OK" in goes.recv(100)
    stream = server.client.chat.completions.create(
        model="default", messages=user(LONG_ANSWERS[0].instruction), temperature=0, stream=True
    )
    chunks: Any = iter(stream)
    text = next(chunks).choices[0].delta.content
    close(goes)
    for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
    assert text == LONG_ANSWERS[0].response
    until_idle(server)


def test_closing_the_official_clients_stream_cancels(server: Running) -> None:
    stream = server.client.chat.completions.create(
        model="default",
        messages=user("x"),
        max_tokens=1500,
        logit_bias={str(END): -1000},
        stream=True,
    )
    next(iter(stream))
    stream.close()
    until_idle(server)


def test_an_answer_whose_time_is_up_ends_where_it_is() -> None:
    with engine_of(n_parallel=1) as engine, serving(engine, timeout=WAIT) as server, server.http as http:
        gate = Gate()
        held = engine.stream([5, 6], ENDLESS, raw=True, on_progress=gate)
        gate.wait()
        waiting = server.raw(post(CHAT, {"messages": user("x")}))
        until(lambda: any(request.cancelled for request in list(engine._scheduler._waiting)))
        gate.open()
        held.close()
        assert answer(waiting) == ""

        body = ENDLESS_CHAT | {"stream": True}
        with http.stream("POST", CHAT, json=body) as response:
            found = events(list(response.iter_lines()))
    ended = next(one for one in found if one["choices"] and one["choices"][0]["finish_reason"])
    assert (ended["choices"][0]["finish_reason"], ended["weblab"]["timed_out"]) == ("length", True)


def test_a_server_that_ends_ends_its_streams() -> None:
    with engine_of(n_parallel=1) as engine:
        with serving(engine) as server:
            connection = server.raw(post(CHAT, ENDLESS_CHAT | {"stream": True, "max_tokens": 2000}))
            assert b"200 OK" in connection.recv(100)
        connection.settimeout(PATIENCE)
        while connection.recv(65536):
            pass
        connection.close()
        assert running(engine) == 0


def test_a_client_that_does_not_read_its_stream_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weblab_local.server.connection.SEND_SECONDS", 0.2)
    greedy_one = {"messages": user(PAIRS[0].instruction), "temperature": 0}
    body = ENDLESS_CHAT | {"n": 4, "logprobs": True, "top_logprobs": 20, "max_tokens": 450, "stream": True}
    with engine_of(n_parallel=4) as engine, serving(engine, queue=0) as server, server.http as http:
        connection = server.raw(post(CHAT, body))
        until(lambda: running(engine))
        until(lambda: http.post(CHAT, json=greedy_one).status_code == 200)
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: 127"], ids=["nothing", "half a header"])
def test_a_connection_on_which_no_request_comes_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weblab_local.server.serve.KEEP_ALIVE_SECONDS", 0.2)
    with engine_of(n_parallel=1) as engine, serving(engine) as server, server.raw(sent) as connection:
        assert connection.recv(100) == b""
        assert greedy(server, PAIRS[0].instruction) == PAIRS[0].response
