"""`weblab-local app`, as a program of its own and as a server in this process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.server.support import KEY, listening, until
from tests.support.conversions import ROOT
from tests.support.engines import PATIENCE
from weblab_local import i18n
from weblab_local.engine.engine import Engine
from weblab_local.server.app import create_desktop_app
from weblab_local.server.config import ServerConfig
from weblab_local.server.desktop.model_holder import Load, ModelHolder
from weblab_local.server.desktop.presence import Presence
from weblab_local.server.desktop.routes import Desktop

READY = re.compile(r"http://127\.0\.0\.1:(\d+)/#key=(\S+)")
N_PARALLEL = 2


class Browser:
    """What BROWSER names: a program that opens nothing, and writes down which address it was to open."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "browser"
        self._opened = folder / "opened"
        self.program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{self._opened}"\n')
        self.program.chmod(0o755)

    def opened(self, n: int) -> list[str]:
        """The addresses, once there are n."""
        until(lambda: len(self._lines()) >= n)
        return self._lines()

    def _lines(self) -> list[str]:
        return self._opened.read_text().split() if self._opened.exists() else []


@dataclass(frozen=True)
class App:
    """A server that is an app's."""

    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def http(self) -> httpx2.Client:
        """A client with the key."""
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=PATIENCE)

    def status(self) -> Any:
        """What the page is told of the model."""
        with self.http as http:
            return http.get("/v1/app/model").json()

    def choose(self, model: str | Path) -> Any:
        """Have a model loaded; what the page is told when that has ended."""
        with self.http as http:
            assert http.post("/v1/app/model", json={"model": str(model)}).status_code == 202
            until(lambda: http.get("/v1/app/model").json()["state"] != "loading")
        return self.status()


@dataclass(frozen=True)
class Program(App):
    """The same as a program."""

    process: subprocess.Popen[str]


_MAIN = "from weblab_local.cli import main; main()"


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "weblab_local", "app", *options]


@contextmanager
def started(*options: str, code: str | None = None, **variables: str) -> Iterator[Program]:
    """`weblab-local app`, once it has said where its page is; killed if it is still there in the end.

    `code`: Python to run before it, in its process.
    """
    process = subprocess.Popen(
        command(*options) if code is None else [sys.executable, "-c", f"{code}\n{_MAIN}", "app", *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"LANG": "C.UTF-8"} | variables,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := READY.search(line):
                yield Program(int(found[1]), found[2], process)
                return
        raise AssertionError(said)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class InProcess(App):
    """The same in this process."""

    desktop: Desktop


def load_on_one_thread(path: str, on_progress: Callable[[float], None]) -> Engine:
    """Load a model, so that little depends on the machine's load."""
    return Engine(Path(path), n_parallel=N_PARALLEL, n_threads=1, on_progress=on_progress)


@contextmanager
def in_process(load: Load = load_on_one_thread) -> Iterator[InProcess]:
    """An app's server without a model. It does not end by itself; it comes to speak its page's language."""
    config = ServerConfig(port=0, api_keys=[KEY])
    try:
        with ModelHolder(load, config) as models:
            desktop = Desktop(KEY, models, Presence(close_after=3600))
            with listening(create_desktop_app(desktop, config), config, N_PARALLEL) as port:
                yield InProcess(port, KEY, desktop)
    finally:
        i18n.use(None)
