"""From an engine and settings to a server that listens, until it is told to end."""

import asyncio
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from weblab_local.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.server.app import create_app
from weblab_local.server.config import ServerConfig

GRACE_SECONDS = 2
"""How long answers may go on when the server is told to end."""

KEEP_ALIVE_SECONDS = 30
BACKLOG = 128


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
    """A server on one engine. `run` blocks; `stop` may be called from any thread."""

    def __init__(self, engine: Engine, config: ServerConfig, listener: socket.socket) -> None:
        """`listener` is what `listen` gave; the server closes it."""
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                create_app(engine, config),
                http=_Protocol,
                access_log=False,
                log_config=None,
                log_level="critical",  # its messages quote what was sent
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    def run(self, on_ready: Callable[[], None]) -> None:
        """Answer requests until `stop`, Ctrl-C or SIGTERM. `on_ready` is called when the first can come."""
        self._uvicorn.on_ready = on_ready
        self._uvicorn.run(sockets=[self._listener])

    def stop(self) -> None:
        """Take no more requests, and let `run` end soon."""
        self._uvicorn.should_exit = True


class _Protocol(H11Protocol):
    """uvicorn's protocol, which also closes a connection on which no request has come for KEEP_ALIVE_SECONDS."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which says when it listens."""

    on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_ready is not None:
            self.on_ready()
