"""simonw/llm with its model file, as the command that it is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.environments import LLM as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, MODEL, QUESTION, Mountain, Server

MODEL_FILE = f"""
- model_id: weblab
  model_name: {MODEL}
  api_base: "URL"
  api_key_name: weblab
  supports_schema: true
- model_id: weblab-responses
  model_name: {MODEL}
  api_base: "URL"
  api_key_name: weblab
  supports_schema: true
  responses: true
"""
GREEDY = ("-o", "temperature", "0")
Run = Callable[..., str]


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    """What `llm` prints, with that file in its folder."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODEL_FILE.replace("URL", server.v1), encoding="utf-8")
    (tmp_path / "keys.json").write_text(json.dumps({"weblab": KEY}), encoding="utf-8")
    variables = os.environ | {"LLM_USER_PATH": str(tmp_path), "PYTHONUTF8": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    return run


@pytest.mark.parametrize("way", ["--no-stream"])
def test_plain(run: Run, way: str) -> None:
    assert run("-m", "weblab", *GREEDY, way, QUESTION) == ANSWER


@pytest.mark.parametrize("way", ["prompt"])
def test_streamed(run: Run, way: str) -> None:
    assert run(way, "-m", "weblab", *GREEDY, QUESTION) == ANSWER


@pytest.mark.parametrize("way", ["--schema"])
def test_structured(run: Run, way: str) -> None:
    Mountain.model_validate_json(run("-m", "weblab", way, json.dumps(Mountain.model_json_schema()), QUESTION))


@pytest.mark.parametrize("way", ["responses: true"])
def test_over_responses(run: Run, way: str) -> None:
    assert way in MODEL_FILE
    assert run("-m", "weblab-responses", *GREEDY, QUESTION) == ANSWER


@pytest.mark.parametrize("way", ["--continue"])
def test_a_conversation_goes_on(run: Run, way: str) -> None:
    run("-m", "weblab", *GREEDY, QUESTION)
    run(way, QUESTION)
    asked = json.loads(run("logs", "--json"))
    assert [one["prompt"] for one in asked] == [QUESTION] * 2
    assert asked[1]["input_tokens"] > asked[0]["input_tokens"]
