"""OpenAI's client for Node, where it is installed: npm install --prefix build/node openai (`.ci/run` does it)."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.server.support import Running, until, user
from tests.support.conversions import ROOT
from tests.support.engines import PATIENCE, SHORT_ANSWERS, hold

HOME = ROOT / "build" / "node"
PAIR = SHORT_ANSWERS[0]
PROGRAM = """
import OpenAI from "openai";
const [url, key, request] = process.argv.slice(1);
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const answer = await client.chat.completions.create(JSON.parse(request));
if (!answer[Symbol.asyncIterator]) console.log(answer.choices[0].message.content);
else {
  let text = "";
  for await (const chunk of answer) text += chunk.choices[0]?.delta?.content ?? "";
  console.log(text);
}
"""

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (HOME / "node_modules" / "openai").is_dir(),
    reason="needs Node, and npm install --prefix build/node openai",
)


def asked(server: Running, **fields: Any) -> "subprocess.Popen[str]":
    """A process of Node that prints the answer to the pair's instruction."""
    request = {"model": "default", "messages": user(PAIR.instruction), "temperature": 0, **fields}
    return subprocess.Popen(
        [
            "node",
            "--input-type=module",
            "--eval",
            PROGRAM,
            f"{server.url}/v1",
            server.key or "none",
            json.dumps(request),
        ],
        cwd=HOME,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize("stream", [False, True])
def test_it_gets_the_answer(server: Running, stream: bool) -> None:
    with asked(server, stream=stream) as process:
        answer, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, answer) == (0, f"{PAIR.response}\n")


def test_it_takes_no_notice_of_comments(server: Running, comments: list[bytes]) -> None:
    gate, held = hold(server.engine)
    with asked(server, stream=True) as process:
        until(lambda: len(comments) > 1)
        gate.open()
        list(held)
        answer, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, answer) == (0, f"{PAIR.response}\n")
