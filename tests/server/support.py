"""A real server in this process, on loopback, and clients for it."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from starlette.types import ASGIApp

from tests.support.engines import PATIENCE, running
from tests.support.engines import until as until
from weblab_local.engine.engine import Engine
from weblab_local.server.app import create_app
from weblab_local.server.config import ServerConfig
from weblab_local.server.serve import Server, listen

KEY = "a-key-for-the-tests"


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    engine: Engine
    port: int
    key: str | None
    client: openai.OpenAI
    """The official client, which retries nothing."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        """The same for asyncio."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=PATIENCE
        )

    @property
    def http(self) -> httpx2.Client:
        """A plain HTTP client, with the key if there is one."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=PATIENCE)

    def raw(self, request: bytes) -> socket.socket:
        """A connection on which `request` was sent, byte for byte."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(request)
        return connection


@contextmanager
def serving(engine: Engine, *, send_buffer: int | None = None, **settings: Any) -> Iterator[Running]:
    """A server on `engine` with these settings of ServerConfig, on a free port, until the context ends.

    The system's `send_buffer` for a connection holds several MB, unless it is made smaller. Unless `read_ahead` is set,
    the engine computes nothing but what is asked for.
    """
    config = ServerConfig(port=0, **{"read_ahead": False} | settings)
    with (
        listening(create_app(engine, config), config, engine.n_parallel, send_buffer) as port,
        client_of(port, next(iter(config.api_keys), None)) as client,
    ):
        yield Running(engine, port, next(iter(config.api_keys), None), client)


def client_of(port: int, key: str | None) -> openai.OpenAI:
    """OpenAI's client of the server there, which retries nothing."""
    base = f"http://127.0.0.1:{port}/v1"
    return openai.OpenAI(base_url=base, api_key=key or "none", max_retries=0, timeout=PATIENCE)


@contextmanager
def listening(app: ASGIApp, config: ServerConfig, n_parallel: int, send_buffer: int | None = None) -> Iterator[int]:
    """A server of `app` in a thread until the context ends; its port."""
    ready = threading.Event()
    with listen(config) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(app, listener, most_requests=n_parallel + config.queue)
        thread = threading.Thread(target=server.run, args=(ready.set,))
        thread.start()
        try:
            assert ready.wait(PATIENCE)
            yield server.port
        finally:
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def post(path: str, body: object, *headers: str) -> bytes:
    """A POST request as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


def user(*texts: Any) -> list[Any]:
    """A conversation: the user begins, and the two take turns."""
    roles = ("user", "assistant")
    return [{"role": roles[position % 2], "content": text} for position, text in enumerate(texts)]


def events(lines: Sequence[str]) -> list[Any]:
    """The objects of a stream's lines; the last has to be [DONE]."""
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def until_idle(server: Running) -> None:
    """Wait for the engine to have nothing to do."""
    until(lambda: not running(server.engine) and not server.engine._scheduler._waiting)
