"""What ends a request before its answer does: no room, no time, nobody there any more."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.support import Running, events, post, serving, until, until_idle, user
from tests.support.engines import LONG_ANSWERS, ONE, PAIRS, PATIENCE, Gate, engine_of, hold, running
from tests.support.reference import END
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import FinishReason
from weblab_local.engine.request import Request, RunningRequest
from weblab_local.llama.tokenizer import Tokenizer
from weblab_local.server.config import ServerConfig
from weblab_local.server.errors import ApiError
from weblab_local.server.state import ServerState

CHAT = "/v1/chat/completions"
LONG_TEXT = "長い文章。" * 150
ENDLESS_CHAT = {"messages": user("x"), "temperature": 0, "max_tokens": 4000, "logit_bias": {str(END): -1e6}}
WAIT, SOON = 0.01, 1.0


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


def test_nobody_takes_a_prepared_requests_place(engine: Engine) -> None:
    state = ServerState(engine, ServerConfig(queue=0))

    async def prepared() -> None:
        result, places = await state.prepare(engine.n_parallel, lambda: "prepared")
        assert result == "prepared"
        with pytest.raises(ApiError, match="no room"):
            state.admission.admit(1)
        places.release_all()
        state.admission.admit(1)

    asyncio.run(prepared())


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


def test_what_cannot_fit_is_not_tokenized(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encode = Tokenizer._encode_piece

    def counted(tokenizer: Tokenizer, data: bytes) -> list[int]:
        read.append(len(data))
        return encode(tokenizer, data)

    monkeypatch.setattr(Tokenizer, "_encode_piece", counted)
    long = LONG_TEXT * 40
    with server.http as http:
        refused = http.post(CHAT, json={"messages": user(long)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        refused = http.post(CHAT, json={"messages": [{"role": "system", "content": long}, *user("x")]})
        assert refused.status_code == 400
        old = [*user(long), {"role": "assistant", "content": "a"}, *user("b"), {"role": "assistant", "content": long}]
        answered = http.post(CHAT, json={"messages": [*old * 5, *user("x")], "max_tokens": 1})
        assert answered.json()["weblab"]["dropped_messages"] == 20
    assert sum(read) < len(long.encode()) / 2


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


def stops_until_cancelled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have answers stop after some tokens until they are cancelled: no machine is too fast for a deadline then."""
    scheduler, cancelled = engine._scheduler, threading.Event()
    choosing = scheduler._choosing
    take, cancel = choosing._take, scheduler.cancel

    def stop(running: RunningRequest, token: int, index: int) -> FinishReason | None:
        if running.generated == 5:
            assert cancelled.wait(PATIENCE)
        return take(running, token, index)

    def noted(request: Request) -> None:
        cancel(request)
        cancelled.set()

    monkeypatch.setattr(choosing, "_take", stop)
    monkeypatch.setattr(scheduler, "cancel", noted)


def test_an_answer_whose_time_is_up_ends_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(n_parallel=1) as engine, serving(engine, timeout=SOON) as server, server.http as http:
        stops_until_cancelled(engine, monkeypatch)
        body = ENDLESS_CHAT | {"stream": True}
        with http.stream("POST", CHAT, json=body) as response:
            found = events(list(response.iter_lines()))
    ended = next(one for one in found if one["choices"] and one["choices"][0]["finish_reason"])
    assert (ended["choices"][0]["finish_reason"], ended["weblab"]["timed_out"]) == ("length", True)


def test_time_is_counted_from_where_an_answers_computation_begins() -> None:
    """All of them together take longer than one may."""
    with engine_of(n_parallel=1) as engine, serving(engine, timeout=SOON) as server, server.http as http:
        done = http.post(CHAT, json=ENDLESS_CHAT | {"n": 4}).json()
    texts = [choice["message"]["content"] for choice in done["choices"]]
    assert len(texts) == 4
    assert all(texts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": user("x")}), ("/v1/completions", {"prompt": "x"})])
def test_what_never_began_in_its_time_is_to_be_asked_again(path: str, asked: dict[str, Any], stream: bool) -> None:
    with engine_of(n_parallel=1) as engine, serving(engine, queue=0, timeout=WAIT) as server, server.http as http:
        gate, held = hold(engine)
        for _ in range(2):  # the first has given its place back
            response = http.post(path, json=asked | {"stream": stream})
            if stream:
                assert response.status_code == 200, "it was sent before"
                said = json.loads(response.text.strip().removeprefix("data: "))
                status, wait = said["weblab"]["status"], said["weblab"]["retry_after"]
            else:
                said, status, wait = response.json(), response.status_code, response.headers["retry-after"]
            assert (status, said["error"]["code"], said["error"]["type"]) == (503, "no_answer_in_time", "server_error")
            assert 1 <= int(wait) <= 60
        with pytest.raises(openai.APIError, match="busy"):
            list(server.client.chat.completions.create(model="default", messages=user("x"), stream=True))
        gate.open()
        list(held)


def test_an_answer_of_nothing_is_none() -> None:
    """Where the time is up before the first token, as while a long prompt is read."""
    with engine_of(n_parallel=3) as engine, serving(engine, timeout=SOON) as server:
        first_gate, held = hold(engine)
        gate = Gate()
        also_held = engine.stream([2997, 2996], ONE, raw=True, on_progress=gate)
        connection = server.raw(post(CHAT, {"messages": user(LONG_TEXT)}))
        until(lambda: len(engine._scheduler._waiting) == 2)
        first_gate.open()
        gate.wait()
        (asked,) = [one.request for one in engine._scheduler._running if len(one.request.prompt) > 2]
        until(lambda: asked.cancelled)
        gate.open()
        assert connection.recv(12) == b"HTTP/1.1 503"
        connection.close()
        list(held), list(also_held)


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
    monkeypatch.setattr("weblab_local.server.http_protocol.SEND_SECONDS", 0.2)
    greedy_one = {"messages": user(PAIRS[0].instruction), "temperature": 0}
    body = ENDLESS_CHAT | {"n": 4, "logprobs": True, "top_logprobs": 20, "max_tokens": 450, "stream": True}
    with engine_of(n_parallel=4) as engine, serving(engine, queue=0, send_buffer=4096) as server, server.http as http:
        connection = server.raw(post(CHAT, body))
        until(lambda: running(engine))
        until(lambda: http.post(CHAT, json=greedy_one).status_code == 200)
        until_idle(server)
        with connection:
            assert b"[DONE]" not in b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: 127"], ids=["nothing", "half a header, and then nothing"]
)
def test_a_connection_on_which_no_request_comes_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weblab_local.server.http_protocol.HEADER_SECONDS", 0.2)
    with engine_of(n_parallel=1) as engine, serving(engine) as server, server.raw(sent) as connection:
        assert connection.recv(100) == b""
        assert greedy(server, PAIRS[0].instruction) == PAIRS[0].response
