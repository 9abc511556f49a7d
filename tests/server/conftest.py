"""Fixtures of the server's tests."""

from collections.abc import Iterator

import pytest

from tests.engines import engine_of
from tests.server.support import Running, serving
from weblab_local.engine import Engine


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
