"""The server, and the note of what works.

WEBLAB_TEST_CLIENTS names the file for that note, WEBLAB_TEST_PYTHON the Python that runs the server; `python -m
tests.clients` sets both. Without them nothing here is collected.
"""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import Client
from tests.clients.support import Server, started

RESULTS = os.environ.get("WEBLAB_TEST_CLIENTS", "")
COLUMNS = ("plain", "streamed", "structured")

collect_ignore_glob = [] if RESULTS else ["test_*.py"]

_passed: list[tuple[Client, str, str]] = []
"""Of each test that has passed its client, the column of the table, and by which way of the client."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Streams are read from a server as it is, and from one that sends comments in between."""
    if metafunc.function.__name__ == "test_streamed" and "server" in metafunc.fixturenames:
        metafunc.parametrize("server", ["serving", "commenting"], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """`weblab-local serve` on the demo, with a key."""
    running: Server = request.getfixturevalue(getattr(request, "param", "serving"))
    return running


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("home"), "weblab_local") as running:
        yield running


@pytest.fixture(scope="session")
def commenting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("home"), "tests.clients.altered", "commented") as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "call" and report.passed:
        name = item.originalname.removeprefix("test_")
        mark = item.get_closest_marker("way")
        way = str(mark.args[0] if mark else item.callspec.params["way"])
        _passed.append((item.module.CLIENT, name if name in COLUMNS else "other", way))
    return report


def pytest_sessionfinish() -> None:
    if RESULTS:
        found: dict[str, Any] = {}
        for client, column, way in _passed:
            row = found.setdefault(client.name, {column: [] for column in (*COLUMNS, "other")})
            row["version"] = client.installed
            row[column].append(way)
        Path(RESULTS).write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
