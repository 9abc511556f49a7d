"""Fixtures of the server's tests."""

from collections.abc import Iterator

import pytest

from tests.server.support import Running, serving
from tests.support.engines import engine_of
from weblab_local.engine.engine import Engine
from weblab_local.server.connection import EventStream


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The demo, four answers at a time."""
    with engine_of(n_parallel=4) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[Running]:
    """A server on it that wants no key."""
    with serving(engine) as running:
        yield running


@pytest.fixture
def comments(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The comments that were sent, as often as a test can wait for."""
    sent: list[bytes] = []
    send = EventStream._send

    async def noted(stream: EventStream, channel: object, data: bytes) -> None:
        await send(stream, channel, data)  # type: ignore[arg-type]
        if data.startswith(b":"):
            sent.append(data)

    monkeypatch.setattr(EventStream, "_send", noted)
    monkeypatch.setattr("weblab_local.server.connection.KEEP_ALIVE_SECONDS", 0.02)
    return sent
