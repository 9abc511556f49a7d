"""What is asked, and what has to come back."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from tests.clients.environments import NODE, ROOT

KEY = "a-key-for-the-tests"
MODEL = "default"

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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def v1(self) -> str:
        """What clients of OpenAI's API take for `base_url`."""
        return f"{self.url}/v1"


def from_node(program: str, server: Server, column: str, way: str) -> Any:
    """What a program of `node/` prints when it asks the question in that way."""
    asked = {"url": server.v1, "key": KEY, "model": MODEL, "question": QUESTION, "column": column, "way": way}
    command = ["node", program, json.dumps(asked)]
    done = subprocess.run(command, cwd=NODE, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
