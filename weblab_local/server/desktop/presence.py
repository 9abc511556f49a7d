"""Whether the app's page is open anywhere: it holds a connection, and the app ends when none has been held for a while.

A page in a background tab, whose timers and scripts the browser slows down or stops, holds its connection all the same.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weblab_local.server.connection import STREAM_HEADERS

FIRST_PAGE_SECONDS = 600.0
"""How long the first page is waited for: a browser may have to be started, or the address be copied by hand."""


class Presence:
    """Counts the pages that are open. All calls come from the event loop's thread."""

    def __init__(self, close_after: float) -> None:
        """`close_after`: seconds that no page may be open, once one was."""
        self._close_after = close_after
        self.n_pages = 0
        """How many connections of pages are open; one may stand for several tabs of a browser."""
        self._end: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, end: Callable[[], None]) -> None:
        """Call `end` when the last page has been closed for so long, or when none ever comes."""
        self._end = end
        if self.n_pages == 0:
            self._end_in(max(FIRST_PAGE_SECONDS, self._close_after))

    @contextmanager
    def page(self) -> Iterator[None]:
        """A page that is open as long as the context is."""
        self.n_pages += 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            yield
        finally:
            self.n_pages -= 1
            if self.n_pages == 0:
                self._end_in(self._close_after)

    def _end_in(self, seconds: float) -> None:
        if self._end is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end)


class PresenceStream(Response):
    """A response that says nothing, and ends when its client is gone."""

    media_type = "text/plain"

    def __init__(self, presence: Presence) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._presence = presence

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Begin, and wait."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with self._presence.page():
            while (await receive())["type"] != "http.disconnect":
                pass
