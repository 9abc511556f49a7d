"""uvicorn's HTTP/1.1, with deadlines on what a client has to do and a bound on connections.

A connection costs memory and a file descriptor before any key is asked for. So none is kept that sends no request, and
none that does not read what it asked for.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 30
"""From connecting, or from the end of the last response, to a request's complete header."""

SEND_SECONDS = 30.0
"""A client that takes no more than SEND_BYTES in so long, and not the rest of the event either, is taken for gone."""

SEND_BYTES = 16384
"""Half a kilobyte a second: who reads a long answer over a slow line gets it."""


class HttpConfig(uvicorn.Config):
    """uvicorn's settings, and how many connections may be open."""

    def __init__(self, *arguments: Any, most_connections: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.most_connections = most_connections


class HttpProtocol(H11Protocol):
    """One connection. While it waits for a header, any number of bytes that complete none buys it no time.

    When there are too many, the one that has waited longest for a header is closed; where none waits, the new one.
    """

    config: HttpConfig

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header = _Deadline(self.loop)
        self._send = _Deadline(self.loop)
        self._unsent = 0
        """Bytes that were still to be taken when the deadline began."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing then tells of every byte that is not taken
        self._watch_header()
        if len(self.connections) > self.config.most_connections:
            waiting = [one for one in self.connections if isinstance(one, HttpProtocol) and one._header.running]
            oldest = min(waiting, key=lambda one: one._header.started, default=self)
            oldest._header.stop()
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._header.stop()
        self._send.stop()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_header()

    def _watch_header(self) -> None:
        """Start the header's deadline where one is awaited and none runs; end it where a request is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._header.stop()
        elif not self._header.running and not self.transport.is_closing():
            self._header.start(HEADER_SECONDS, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def _watch_sending(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._send.start(SEND_SECONDS, self._require_progress)

    def _require_progress(self) -> None:
        if self._unsent - self.transport.get_write_buffer_size() > SEND_BYTES:
            self._watch_sending()
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send.stop()


class _Deadline:
    """A timer that can be started again after it was stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.started = 0.0

    @property
    def running(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float, end: Callable[[], None]) -> None:
        """Call `end` in so many seconds."""
        self.stop()
        self.started = self._loop.time()
        self._timer = self._loop.call_later(seconds, end)

    def stop(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
