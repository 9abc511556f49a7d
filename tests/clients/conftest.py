"""The server, and the note of what works.

WEBLAB_TEST_CLIENTS names the file for that note, WEBLAB_TEST_PYTHON the Python that runs the server; `python -m
tests.clients` sets both. Without them nothing here is collected.
"""

import json
import os
import re
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import ROOT, Client
from tests.clients.support import KEY, Server

RESULTS = os.environ.get("WEBLAB_TEST_CLIENTS", "")
READY = re.compile(r"http://127\.0\.0\.1:(\d+)/")
OPTIONS = ("serve", "--model", "demo", "--port", "0", "--threads", "1")
COLUMNS = ("plain", "streamed", "structured")

WITH_COMMENTS = """
from weblab_local.cli import main
from weblab_local.server.connection import EventStream

send = EventStream._send

async def after_a_comment(stream, channel, data):
    if stream.SILENT:
        await send(stream, channel, stream.SILENT)
    await send(stream, channel, data)

EventStream._send = after_a_comment
main()
"""
"""The same server, but before each event comes what it sends where it has none for ten seconds."""

collect_ignore_glob = [] if RESULTS else ["test_*.py"]

_passed: list[tuple[Client, str, str]] = []
"""Of each test that has passed its client, the column of the table, and by which way of the client."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Streams are read from a server as it is, and from one that sends comments in between."""
    if metafunc.function.__name__ == "test_streamed":
        metafunc.parametrize("server", ["serving", "commenting"], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """`weblab-local serve` on the demo, with a key."""
    running: Server = request.getfixturevalue(getattr(request, "param", "serving"))
    return running


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("home"), "-m", "weblab_local") as running:
        yield running


@pytest.fixture(scope="session")
def commenting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("home"), "-c", WITH_COMMENTS) as running:
        yield running


@contextmanager
def started(home: Path, *code: str) -> Iterator[Server]:
    """A server, once it is ready."""
    process = subprocess.Popen(
        [os.environ["WEBLAB_TEST_PYTHON"], *code, *OPTIONS],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"WEBLAB_LOCAL_API_KEY": KEY, "WEBLAB_LOCAL_HOME": str(home)},
    )
    assert process.stderr is not None
    try:
        said = ""
        for line in process.stderr:
            said += line
            if found := READY.search(line):
                break
        else:
            raise AssertionError(said)
        yield Server(int(found[1]))
    finally:
        process.kill()
        process.communicate()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "call" and report.passed:
        name = item.originalname.removeprefix("test_")
        way = str(item.callspec.params["way"])
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
