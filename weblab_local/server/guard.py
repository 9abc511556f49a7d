"""What a request has to pass before anything reads it: where it comes from, who sends it, how large it is.

A server on 127.0.0.1 is within reach of every web page that its user opens. A page cannot read another origin's
answers, unless it makes the browser believe that they have the same: DNS rebinding lets a name of its own point to
127.0.0.1. Such a request has that name in its Host header, and one that a page's script sends has its Origin.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weblab_local.i18n import _
from weblab_local.server.config import ServerConfig
from weblab_local.server.errors import OLLAMA, ApiError, api_error

logger = logging.getLogger(__name__)

APIS = ("/v1/", OLLAMA, "/tokenize", "/detokenize", "/props", "/metrics")
"""What wants a key, where there are keys: how these addresses begin."""

CLIENT_LEFT = 499
"""nginx's status for a client that did not wait for its response."""

BODY_SECONDS = 30.0
"""A body that takes longer to arrive is not waited for."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around everything: refuses, adds headers, answers errors, and keeps a log without contents."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._config = config
        self._keys = [_digest(key.encode()) for key in config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            try:
                self._check(scope)
                await self._app(scope, _BoundedBody(receive, scope, self._config.max_body), send_with_headers)
            except ClientDisconnect:
                status = status or CLIENT_LEFT
            except Exception as error:
                if not isinstance(error, ApiError):
                    _log_failure(error)
                if not status:  # else it has begun, and ends where it is
                    await api_error(error).response(scope["path"])(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            logger.info("%s %s %d %.3f s", scope["method"], route, status, time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own_name(host):
            raise ApiError(
                403,
                _("The Host header names another machine. Use 127.0.0.1, or start with --allowed-host NAME."),
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not (is_same_origin(origin, host) or origin in self._config.cors_origins):
            raise ApiError(
                403,
                _("Pages from elsewhere may not ask. Start with --cors-origin ORIGIN for one that may."),
                code="origin_not_allowed",
            )
        if self._keys and scope["path"].startswith(APIS):
            self._check_key(headers)

    def _is_own_name(self, host: str) -> bool:
        """Whether a Host header can come from somebody who meant this server. An address cannot be rebound."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in ("localhost", self._config.host.lower(), *map(str.lower, self._config.allowed_hosts)):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == socket.gethostname().lower()
        return True

    def _check_key(self, headers: Headers) -> None:
        scheme, _space, key = headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip().encode("utf-8", errors="replace"))
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                _("This server wants its API key, as `Authorization: Bearer KEY`."),
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page's Origin is the server that the Host header names, over HTTP or, by way of a proxy, over HTTPS.

    What a proxy says in X-Forwarded headers does not count: anybody could.
    """
    scheme, separator, place = origin.lower().partition("://")
    usual_port = {"http": ":80", "https": ":443"}.get(scheme)
    if not separator or usual_port is None or not place:
        return False
    return place.removesuffix(usual_port) == host.lower().removesuffix(usual_port)


def _digest(key: bytes) -> bytes:
    """Keys are compared by this: it takes the same time whatever their lengths."""
    return hashlib.sha256(key).digest()


class _BoundedBody:
    """A request's `receive` that gives no more than `most` bytes, and waits for them no longer than BODY_SECONDS."""

    def __init__(self, receive: Receive, scope: Scope, most: int) -> None:
        self._receive = receive
        self._most = most
        self._deadline = time.monotonic() + BODY_SECONDS
        self._read_all = False
        declared = Headers(scope=scope).get("content-length", "0")
        self._refuse = declared.isdigit() and int(declared[:18]) > most
        self._n_bytes = 0

    async def __call__(self) -> Message:
        """The next message. Raises ApiError 413 and 408."""
        if self._read_all:
            return await self._receive()
        if self._refuse:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, _("The request's body did not arrive in time."), code="timeout") from None
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self._read_all = not message.get("more_body", False)
            if self._n_bytes > self._most:
                raise self._too_large()
        return message

    def _too_large(self) -> ApiError:
        """The connection stays open: closed on bytes that are still coming, it would take the response with it."""
        return ApiError(
            413,
            _("The request's body is larger than {n} bytes.").format(n=self._most),
            code="body_too_large",
        )


def _log_failure(error: BaseException) -> None:
    """Where something failed that should not: the place in the code, no message, which may quote a prompt or a path."""
    places: Sequence[str] = ()
    traceback = error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "?")
        places = (*places, f"{module}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    logger.error("%s at %s", type(error).__name__, " > ".join(places))
