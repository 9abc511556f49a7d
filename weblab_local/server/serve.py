"""From an ASGI app to a server that listens, until it is told to end."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import HANDLED_SIGNALS

from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.server.config import ServerConfig
from weblab_local.server.connection import ENDING
from weblab_local.server.http_protocol import HEADER_SECONDS, HttpConfig, HttpProtocol

GRACE_SECONDS = 2
"""How long answers may go on when the server is told to end; then streams say that it does."""

LAST_WORDS_SECONDS = 1
"""How long that may take."""

BACKLOG = 128
SPARE_CONNECTIONS = 128
"""Connections beyond one for each request that is answered or waits: idle ones, and those that get an error."""


def listen(config: ServerConfig) -> socket.socket:
    """A socket at the configured address; port 0 takes a free one. Raises WeblabError where that cannot be had."""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise WeblabError(
            _("{host}:{port} cannot be listened on: {error}.").format(host=config.host, port=config.port, error=error),
            _("Another program may have the port: --port 0 takes a free one."),
        ) from None
    return listener


class Server:
    """A server of one ASGI app. `run` blocks; `stop` may be called from any thread."""

    def __init__(self, app: ASGIApp, listener: socket.socket, *, most_requests: int) -> None:
        """`listener` is what `listen` gave; the server closes it. `most_requests` are answered or wait."""
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        ending = asyncio.Event()

        async def with_ending(scope: Scope, receive: Receive, send: Send) -> None:
            scope[ENDING] = ending
            await app(scope, receive, send)

        self._uvicorn = _Uvicorn(
            HttpConfig(
                with_ending,
                http=HttpProtocol,
                access_log=False,
                log_config=None,
                log_level="critical",  # its messages quote what was sent
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                most_connections=most_requests + SPARE_CONNECTIONS,
                timeout_keep_alive=HEADER_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS + LAST_WORDS_SECONDS,
            )
        )
        self._uvicorn.ending = ending

    def run(self, on_ready: Callable[[], None]) -> None:
        """Answer requests until `stop`, Ctrl-C or SIGTERM. `on_ready` is called when the first can come."""
        self._uvicorn.on_ready = on_ready
        self._uvicorn.run(sockets=[self._listener])

    def stop(self) -> None:
        """Take no more requests, and let `run` end soon."""
        self._uvicorn.should_exit = True


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which says when it listens, and when it is about to end."""

    on_ready: Callable[[], None] | None = None
    ending: asyncio.Event

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but handlers that an app has set outside of Python stay: Python could not put them back."""
        if any(signal.getsignal(number) is None for number in HANDLED_SIGNALS):
            yield
            return
        with super().capture_signals():
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_ready is not None:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self.ending.set)
        await super().shutdown(sockets)
