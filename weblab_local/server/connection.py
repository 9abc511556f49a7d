"""A client that goes away ends its request, also while nothing is being sent to it."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.server.admission import Places
from weblab_local.server.errors import ApiError, api_error, error_event

T = TypeVar("T")

READ_SECONDS = 60.0
"""A client that has not read its stream so long after all of it was generated is taken for gone."""

_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What JSON allows in a string, and some clients take for the end of an event's line."""

KEEP_ALIVE_SECONDS = 10.0
"""A stream that has nothing to send sends a comment so often: proxies and clients cut what is silent for long."""

KEEP_ALIVE = b": keep-alive\n\n"

ENDING = "weblab_local.ending"
"""In a request's scope, an event that is set when the server is about to end."""

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def answered(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` gives. When the client leaves before, `work` is cancelled and ClientDisconnect raised.

    Raises ApiError when the server is about to end.
    """
    ending: asyncio.Event | None = request.scope.get(ENDING)
    try:
        return await while_connected(request.receive, work, None if ending is None else ending.wait())
    except ClientDisconnect:
        if ending is not None and ending.is_set():
            raise _server_ending() from None
        raise


def _server_ending() -> ApiError:
    return ApiError(503, _("The server is being ended."), code="server_ending")


async def while_connected(receive: Receive, work: Awaitable[T], too_late: Awaitable[Any] | None = None) -> T:
    """Return what `work` gives. When the client leaves before, `work` is cancelled and ClientDisconnect raised.

    `receive` is the request's, whose body has been read. A client that is still waiting when `too_late` returns is
    taken for gone.
    """
    task = asyncio.ensure_future(work)
    ends = [asyncio.ensure_future(end) for end in (_gone(receive), too_late) if end is not None]
    try:
        await asyncio.wait((task, *ends), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, *ends):
            one.cancel()
        await asyncio.gather(task, *ends, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


Objects = AsyncGenerator[Mapping[str, Any], None]


class EventStream(Response):
    """Server-sent events: a `data:` line for each JSON object, `data: [DONE]` at the end, comments while there is none.

    Status and headers are sent before the first object is there. So every exception becomes an event that holds the
    error object and the status it would have had, and ends the stream; so does the server's end, with `[DONE]` too.
    """

    media_type = "text/event-stream"
    LAST = b"data: [DONE]\n\n"
    SILENT: bytes | None = KEEP_ALIVE

    @staticmethod
    def _object(one: Mapping[str, Any]) -> bytes:
        return _event(_json(one))

    @staticmethod
    def _error(error: ApiError) -> bytes:
        return _event(_json(error_event(error)))

    def __init__(self, objects: Objects, generated: asyncio.Event, places: Places) -> None:
        """Of `objects` no more come once `generated` is set. The `places` of a stream that ends are free."""
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._objects = objects
        self._generated = generated
        self._places = places
        self._sending = asyncio.Lock()
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, as long as somebody is there and reads them."""
        with self._places:
            async with aclosing(self._objects):
                await while_connected(receive, self._send_all(send, scope.get(ENDING)), self._read_deadline())

    async def _read_deadline(self) -> None:
        await self._generated.wait()
        await asyncio.sleep(READ_SECONDS)

    async def _send_all(self, send: Send, ending: asyncio.Event | None) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._last_sent = time.monotonic()
        comments = asyncio.create_task(self._keep_alive(send))
        failure: Exception | None = None
        try:
            try:
                async with asyncio.timeout(None) as bound:
                    watch = asyncio.create_task(_expire_with(ending, bound))
                    async for one in self._objects:
                        await self._send(send, self._object(one))
            except TimeoutError:
                if not bound.expired():
                    raise
                await self._send(send, self._error(_server_ending()))
            finally:
                watch.cancel()
            if self.LAST:
                await self._send(send, self.LAST)
        except ClientDisconnect:
            raise
        except Exception as error:
            await self._send(send, self._error(api_error(error)))
            failure = None if isinstance(error, WeblabError | ApiError) else error
        finally:
            comments.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if failure is not None:
            raise failure

    async def _send(self, send: Send, data: bytes) -> None:
        async with self._sending:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._last_sent = time.monotonic()
        await asyncio.sleep(0)  # a stream that catches up has many events at once: others get their turn in between

    async def _keep_alive(self, send: Send) -> None:
        while self.SILENT is not None:
            silent = time.monotonic() - self._last_sent
            if silent < KEEP_ALIVE_SECONDS:
                await asyncio.sleep(KEEP_ALIVE_SECONDS - silent)
            else:
                await self._send(send, self.SILENT)


class LineStream(EventStream):
    """The same as Ollama has it: JSON objects, one on a line, and nothing else."""

    media_type = "application/x-ndjson"
    LAST = b""
    SILENT = None

    @staticmethod
    def _object(one: Mapping[str, Any]) -> bytes:
        return f"{_json(one)}\n".encode()

    @staticmethod
    def _error(error: ApiError) -> bytes:
        return LineStream._object(error.of_ollama)


class TypedEventStream(EventStream):
    """The same as the Responses API has it: an event's type is on a line of its own too; the last type is the end."""

    LAST = b""

    @staticmethod
    def _object(one: Mapping[str, Any]) -> bytes:
        return f"event: {one['type']}\n".encode() + _event(_json(one))

    @staticmethod
    def _error(error: ApiError) -> bytes:
        said = error.body.error.model_dump() | {"type": "error", "sequence_number": 0}
        return TypedEventStream._object(said)


async def _expire_with(ending: asyncio.Event | None, bound: asyncio.Timeout) -> None:
    """Let what is bound end when the server does."""
    if ending is not None:
        await ending.wait()
        bound.reschedule(asyncio.get_running_loop().time())


def _json(one: Mapping[str, Any]) -> str:
    return json.dumps(one, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
