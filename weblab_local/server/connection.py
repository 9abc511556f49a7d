"""A client that goes away ends its request, also while nothing is being sent to it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weblab_local.errors import WeblabError
from weblab_local.server.errors import api_error

T = TypeVar("T")

SEND_SECONDS = 30.0
"""A client that does not read its stream for so long is taken for gone."""

_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What JSON allows in a string, and some clients take for the end of an event's line."""

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives. It is cancelled, and ClientDisconnect raised, when the client goes away before.

    `receive` is the request's, whose body has been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


Objects = AsyncGenerator[Mapping[str, Any], None]


async def stream_response(receive: Receive, objects: Objects) -> "EventStream":
    """A response that streams `objects`. What goes wrong before the first of them is raised: it can have a status."""
    return EventStream(await while_connected(receive, anext(objects)), objects)


class EventStream(Response):
    """Server-sent events: a `data:` line for each JSON object, `data: [DONE]` at the end.

    An exception in the middle becomes an event that holds the error object, and ends the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, first: Mapping[str, Any], rest: Objects) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, as long as somebody is there."""
        async with aclosing(self._rest):
            await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await _send_event(send, _json(self._first))
            async for one in self._rest:
                await _send_event(send, _json(one))
            await _send_event(send, "[DONE]")
        except ClientDisconnect:
            raise
        except Exception as error:
            await _send_event(send, api_error(error).body.model_dump_json())
            if not isinstance(error, WeblabError):
                raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _json(one: Mapping[str, Any]) -> str:
    return json.dumps(one, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)


async def _send_event(send: Send, data: str) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
    except TimeoutError:
        raise ClientDisconnect from None
