"""Clients that hold on to what others need: connections, streams that are not read, work nobody waits for."""

import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import psutil
import pytest

from tests.server.support import Running, post, serving, until, user
from tests.support.engines import PAIRS, PATIENCE, engine_of, hold, running
from tests.support.reference import END
from weblab_local.server.http_protocol import SEND_BYTES, HttpProtocol

CHAT = "/v1/chat/completions"
GREEDY = {"messages": user(PAIRS[0].instruction), "temperature": 0}
LARGE_STREAM = {
    "messages": user("x"),
    "temperature": 0,
    "max_tokens": 100,
    "logit_bias": {str(END): -1e6},
    "n": 4,
    "logprobs": True,
    "top_logprobs": 20,
    "stream": True,
}
MOMENT = 0.2
SMALL_BUFFER = 4096
FOREVER = 10 * PATIENCE


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed a connection, on which all that came is taken."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


class Dribble:
    """Sends one byte more, whenever asked, until the server has closed the connection."""

    def __init__(self, connection: socket.socket, byte: bytes) -> None:
        self._connection = connection
        self._byte = byte

    def is_cut(self) -> bool:
        if ended(self._connection):
            return True
        self._connection.settimeout(MOMENT / 10)
        try:
            self._connection.send(self._byte)
            return self._connection.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that waits only a moment for a header."""
    monkeypatch.setattr("weblab_local.server.http_protocol.HEADER_SECONDS", MOMENT)
    with engine_of(n_parallel=1) as engine, serving(engine) as server:
        yield server


@pytest.mark.parametrize(
    ("sent", "byte"),
    [
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", b"x"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HTTP/1.1\r\nX-Slow: ", b"x"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n", b"x"),
        (b"POST /v1/x HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9999\r\n\r\n", b"x"),
    ],
    ids=["the first header", "a later header", "a body nobody reads", "a body after a refusal"],
)
def test_a_client_that_dribbles_is_cut_off(quick: Running, sent: bytes, byte: bytes) -> None:
    with quick.raw(sent) as connection:
        until(Dribble(connection, byte).is_cut)
    assert quick.client.chat.completions.create(model="default", messages=user("x"), max_tokens=1).choices


def test_a_long_answer_is_no_silence(quick: Running) -> None:
    """The deadline is for headers: it does not run while a request is answered."""
    gate, held = hold(quick.engine)
    with quick.raw(post(CHAT, GREEDY)) as connection:
        until(lambda: quick.engine._scheduler._waiting)
        with quick.raw(b"") as silent:
            until(lambda: ended(silent))
        gate.open()
        list(held)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_open_connections_are_bounded_and_nobody_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that send nothing the oldest gives way; a stream that runs is no such connection."""
    monkeypatch.setattr("weblab_local.server.serve.SPARE_CONNECTIONS", 4)
    with engine_of(n_parallel=1) as engine, serving(engine, queue=1) as server, ExitStack() as stack:
        gate, held = hold(engine)
        asked = stack.enter_context(server.raw(post(CHAT, GREEDY)))
        until(lambda: engine._scheduler._waiting)
        silent = [stack.enter_context(server.raw(b"GET / HTTP/1.1\r\nHost: 127")) for _ in range(40)]
        until(lambda: sum(map(ended, silent)) >= 35)
        with server.http as http:
            assert http.get("/health").status_code == 200
        assert not ended(silent[-1])
        gate.open()
        list(held)
        assert asked.recv(15) == b"HTTP/1.1 200 OK"


def unread(server: Running, body: Mapping[str, object] = LARGE_STREAM) -> socket.socket:
    """A connection with next to no buffer, on which something large was asked for."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(post(CHAT, body))
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that still comes."""
    data = bytearray()
    try:
        while received := connection.recv(1 << 20):
            data += received
            if data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                break
    except ConnectionError:
        pass
    return bytes(data)


@pytest.fixture
def answered(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The server's log: a line for each request that has come to its end."""
    caplog.set_level(logging.INFO, "weblab_local.server")
    return caplog


def ends(log: pytest.LogCaptureFixture, status: int) -> int:
    """How many chat requests have ended with that status."""
    return sum(f"POST {CHAT} {status}" in record.getMessage() for record in log.records)


def test_a_place_is_free_when_generation_ends_however_slowly_it_is_read(
    monkeypatch: pytest.MonkeyPatch, answered: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("weblab_local.server.http_protocol.SEND_SECONDS", FOREVER)
    monkeypatch.setattr("weblab_local.server.connection.READ_SECONDS", FOREVER)
    with (
        engine_of(n_parallel=4) as engine,
        serving(engine, queue=0, send_buffer=SMALL_BUFFER) as server,
        server.http as http,
    ):
        with unread(server) as slow:
            until(lambda: running(engine))
            until(lambda: slow.recv(1) and not running(engine))
            until(lambda: slow.recv(1) and http.post(CHAT, json=GREEDY).status_code == 200)
            until(lambda: ends(answered, 200))
            assert ends(answered, 200) == 1, "the stream is still being read"
            assert rest(slow).rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        until(lambda: ends(answered, 200) == 2)


def test_a_stream_that_is_read_too_slowly_is_cut(
    monkeypatch: pytest.MonkeyPatch, answered: pytest.LogCaptureFixture
) -> None:
    """A byte now and then does not keep it open."""
    monkeypatch.setattr("weblab_local.server.connection.READ_SECONDS", MOMENT)
    with (
        engine_of(n_parallel=4) as engine,
        serving(engine, queue=0, send_buffer=SMALL_BUFFER) as server,
        unread(server) as slow,
    ):
        until(lambda: running(engine))
        until(lambda: slow.recv(1) and ends(answered, 200))
        assert b"[DONE]" not in rest(slow)


def test_a_response_that_nobody_reads_keeps_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is no stream."""
    monkeypatch.setattr("weblab_local.server.http_protocol.SEND_SECONDS", MOMENT)
    many = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2000
    with engine_of(n_parallel=1) as engine, serving(engine) as server, server.raw(many):
        until(lambda: n_connections(server) == 1)
        until(lambda: n_connections(server) == 0)


def test_who_takes_some_of_a_large_response_again_and_again_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who has stopped taking is. The deadline is called here, between two reads, not by the clock."""
    monkeypatch.setattr("weblab_local.server.http_protocol.SEND_SECONDS", FOREVER)
    paused: list[HttpProtocol] = []
    pause_writing = HttpProtocol.pause_writing

    def pause(protocol: HttpProtocol) -> None:
        pause_writing(protocol)
        paused.append(protocol)

    monkeypatch.setattr(HttpProtocol, "pause_writing", pause)
    with (
        engine_of(n_parallel=4) as engine,
        serving(engine, send_buffer=SMALL_BUFFER) as server,
        unread(server, LARGE_STREAM | {"stream": False}) as slow,
    ):
        until(lambda: paused)
        (protocol,) = paused

        def left() -> int:
            return protocol.transport.get_write_buffer_size()

        def deadline() -> None:
            done = threading.Event()
            protocol.loop.call_soon_threadsafe(protocol._require_progress)
            protocol.loop.call_soon_threadsafe(done.set)
            assert done.wait(PATIENCE)

        def took_enough() -> bool:
            slow.recv(SMALL_BUFFER)
            return left() < before - SEND_BYTES

        for _ in range(3):
            before = left()
            until(took_enough)
            deadline()
            assert not protocol.transport.is_closing()
        deadline()
        assert protocol.transport.is_closing()


def n_connections(server: Running) -> int:
    """How many connections the server has open."""
    found = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == server.port and one.status == psutil.CONN_ESTABLISHED for one in found)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, threading.Event, list[str]]]:
    """A server that tokenizes a text with "slow" in it only when the event is set, and those it has begun with."""
    go, begun = threading.Event(), list[str]()
    with engine_of(n_parallel=1) as engine, serving(engine, queue=9) as server:
        tokenize = engine.tokenize

        def gated(text: str, limit: int | None = None, *, special: bool = False) -> list[int]:
            if "slow" in text:
                begun.append(text)
                assert go.wait(PATIENCE)
            return tokenize(text, limit, special=special)

        monkeypatch.setattr(engine, "tokenize", gated)
        yield server, go, begun
        go.set()


def leave(server: Running, log: pytest.LogCaptureFixture, n: int, begun: list[str]) -> None:
    """`n` clients whose texts are being prepared, or wait for that, go away, and the server knows it."""
    connections = [server.raw(post(CHAT, {"messages": user(f"slow {number}")})) for number in range(n)]
    until(lambda: len(begun) >= min(n, 2))
    for connection in connections:
        connection.close()
    until(lambda: ends(log, 499) == n)


def test_a_place_is_held_until_the_thread_ends_that_works_for_a_client_who_left(
    gated: tuple[Running, threading.Event, list[str]], answered: pytest.LogCaptureFixture
) -> None:
    server, go, begun = gated
    leave(server, answered, 2, begun)
    with server.http as http:
        completion = {"prompt": [5] * 3, "n": 9, "max_tokens": 1}
        refused = http.post("/v1/completions", json=completion)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        go.set()
        until(lambda: http.post("/v1/completions", json=completion).status_code == 200)


def test_an_answer_does_not_wait_for_threads_whose_clients_left(
    gated: tuple[Running, threading.Event, list[str]], answered: pytest.LogCaptureFixture
) -> None:
    server, _go, begun = gated
    gate, held = hold(server.engine)
    with server.raw(post(CHAT, GREEDY | {"max_tokens": 1, "logprobs": True})) as connection:
        until(lambda: server.engine._scheduler._waiting)
        leave(server, answered, 8, begun)
        gate.open()
        list(held)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        assert len(begun) == 2, "what nobody waits for any more is not begun"
