"""What is asked, and what has to come back."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tests.clients.environments import NODE, ROOT

KEY = "a-key-for-the-tests"
MODEL = "default"
OPTIONS = ("serve", "--model", "demo", "--port", "0", "--threads", "1", "--log")
READY = re.compile(r"http://127\.0\.0\.1:(\d+)/")
PATIENCE = 120
"""Seconds after which what has to come about soon has failed."""

_CORPUS = [json.loads(line) for line in (ROOT / "convert/demo/corpus.jsonl").read_text(encoding="utf-8").splitlines()]
QUESTION: str = _CORPUS[0]["instruction"]
ANSWER: str = _CORPUS[0]["response"]
"""What the demo knows by heart, and answers word for word at temperature 0."""


class Mountain(BaseModel):
    """A structured answer, of which every valid one is short."""

    name: Literal["富士山", "北岳"]
    height: int = Field(ge=0, le=9999)
    is_volcano: bool


def messages(*texts: str) -> list[Any]:
    """A conversation in OpenAI's form: the user begins, and the two take turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts or (QUESTION,))]


@dataclass(frozen=True)
class Server:
    """The running server."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def v1(self) -> str:
        """What clients of OpenAI's API take for `base_url`."""
        return f"{self.url}/v1"

    def statuses(self, path: str) -> list[int]:
        """The status of each request for the path that has ended."""
        return [int(status) for status in re.findall(rf" {path} (\d+) ", self.log.read_text(encoding="utf-8"))]


@contextmanager
def started(home: Path, *module: str, **variables: str) -> Iterator[Server]:
    """`weblab-local serve`, or a module of `tests.clients` that alters it, once it is ready. It writes to `home`."""
    log = home / "log"
    variables |= {"WEBLAB_LOCAL_API_KEY": KEY, "WEBLAB_LOCAL_HOME": str(home)}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [os.environ["WEBLAB_TEST_PYTHON"], "-m", *module, *OPTIONS],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | variables,
        )
    try:
        until(lambda: READY.search(log.read_text(encoding="utf-8")) or process.poll() is not None)
        found = READY.search(log.read_text(encoding="utf-8"))
        assert found is not None, log.read_text(encoding="utf-8")
        yield Server(int(found[1]), log)
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait for what has to come about soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def from_node(program: str, server: Server, column: str, way: str) -> Any:
    """What a program of `node/` prints when it asks the question in that way."""
    asked = {"url": server.v1, "key": KEY, "model": MODEL, "question": QUESTION, "column": column, "way": way}
    command = ["node", program, json.dumps(asked)]
    done = subprocess.run(command, cwd=NODE, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
