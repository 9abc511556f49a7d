"""Ollama's API through its official client, and as it goes over the wire."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import ollama
import pytest

from tests.server.support import KEY, Running, serving, user
from tests.support import reference
from tests.support.engines import LONG_ANSWERS, PAIRS
from weblab_local.engine.engine import Engine
from weblab_local.engine.prompt import CHAT_TEMPLATE

MODEL = "weblab-demo-instruction-sft-Q8_0:latest"
PAIR, LONG = PAIRS[0], LONG_ANSWERS[0]
GREEDY = {"temperature": 0}


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with ollama.Client(host=server.url) as client:
        yield client


def lines(server: Running, path: str, body: Any) -> Sequence[Any]:
    with server.http as http:
        response = http.post(path, json=body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.text.split("\n") if line]


def error(server: Running, path: str, body: Any) -> tuple[int, str]:
    with server.http as http:
        response = http.post(path, json=body)
    (found,) = response.json().items()
    assert found[0] == "error"
    return response.status_code, found[1]


def test_the_client_chats(client: Any) -> None:
    whole = client.chat(MODEL, user(LONG.instruction), options=GREEDY)
    assert (whole.message.role, whole.message.content, whole.done_reason) == ("assistant", LONG.response, "stop")
    assert whole.prompt_eval_count == len(reference.encode(LONG.prompt))
    *pieces, last = client.chat(MODEL, user(LONG.instruction), options=GREEDY, stream=True)
    assert "".join(piece.message.content for piece in pieces) == LONG.response
    assert (last.done, last.message.content, last.eval_count) == (True, "", whole.eval_count)
    assert not any(piece.done for piece in pieces)


def test_the_client_generates(client: Any) -> None:
    assert client.generate(MODEL, PAIR.instruction, options=GREEDY).response == PAIR.response
    assert client.generate(MODEL, PAIR.prompt, raw=True, options=GREEDY).response == PAIR.response
    streamed = client.generate(MODEL, LONG.instruction, options=GREEDY, stream=True)
    assert "".join(piece.response for piece in streamed) == LONG.response
    system = client.generate(MODEL, PAIR.instruction, system="短く。", options=GREEDY | {"num_predict": 1})
    asked = "短く。\n\n" + PAIR.instruction
    assert system.prompt_eval_count == len(reference.encode(PAIR.prompt.replace(PAIR.instruction, asked)))


def test_the_client_asks_for_json(client: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    done = client.chat(MODEL, user("JSON"), format=schema, options=GREEDY)
    assert json.loads(done.message.content)["n"] in (1, 2)
    assert client.generate(MODEL, "JSON", format="json", options={"num_predict": 5}).response.startswith("{")


def test_the_client_looks_around(client: Any, server: Running) -> None:
    assert [one.model for one in client.list().models] == [MODEL, "weblab-demo-instruction-sft:latest"]
    one = client.list().models[0]
    assert one.size == server.engine.path.stat().st_size
    assert (one.details.format, one.details.family, one.details.quantization_level) == ("gguf", "gptneox", "Q8_0")
    shown = client.show("weblab-demo-instruction-sft")
    assert (shown.template, shown.modelinfo["gptneox.context_length"]) == (CHAT_TEMPLATE, 2048)
    assert "MIT" in shown.license
    assert shown.capabilities == ["completion"]
    assert client.ps().models[0].context_length == 2048
    assert client.pull(MODEL).status == "success"


def test_the_client_gets_its_own_errors(client: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="demo") as refused:
        client.chat("llama3", user("x"))
    assert refused.value.status_code == 404
    changes: list[Callable[[], Any]] = [
        lambda: client.delete(MODEL),
        lambda: client.copy(MODEL, "x"),
        lambda: client.pull("llama3"),
    ]
    for change in changes:
        with pytest.raises(ollama.ResponseError):
            change()


def test_lines_of_json_unless_it_is_not_to_be_a_stream(server: Running) -> None:
    body = {"model": MODEL, "messages": user(PAIR.instruction), "options": GREEDY}
    *pieces, last = lines(server, "/api/chat", body)
    assert "".join(piece["message"]["content"] for piece in pieces) == PAIR.response
    assert (last["done"], last["done_reason"], last["weblab"]["ignored"]) == (True, "stop", [])
    with server.http as http:
        whole = http.post("/api/chat", json=body | {"stream": False}).json()
    assert (whole["message"]["content"], whole["model"], whole["done"]) == (PAIR.response, MODEL, True)
    assert whole["total_duration"] >= whole["prompt_eval_duration"] + whole["eval_duration"] > 0
    assert whole["created_at"].endswith("Z")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("content_type", ["Content-Type: application/x-www-form-urlencoded", "Content-Type:"])
def test_json_is_read_whatever_the_content_type(server: Running, content_type: str) -> None:
    """curl as Ollama's own documentation calls it, which sends the first of these; the second takes the header away."""
    body = {"messages": user(PAIR.instruction), "options": GREEDY, "stream": False}
    command = ["curl", "-s", f"{server.url}/api/chat", "-H", content_type, "-d", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout)["message"]["content"] == PAIR.response
    elsewhere = subprocess.run([*command, "-H", "Origin: https://example.com"], capture_output=True, check=True)
    assert "elsewhere" in json.loads(elsewhere.stdout)["error"]


def test_options_reach_the_sampler_and_others_are_named(server: Running) -> None:
    options = {"num_predict": 3, "top_k": 1, "temperature": 50, "stop": [], "num_ctx": 4096, "mirostat": 0}
    body = {"messages": user(LONG.instruction), "options": options, "keep_alive": "5m", "think": False, "tools": []}
    *pieces, last = lines(server, "/api/chat", body)
    assert LONG.response.startswith("".join(piece["message"]["content"] for piece in pieces))
    assert (last["eval_count"], last["done_reason"]) == (3, "length")
    assert {*last["weblab"]["ignored"]} == {"keep_alive", "think", "tools", "options.num_ctx", "options.mirostat"}
    for endless in (-1, -2, 0):
        *_pieces, last = lines(
            server, "/api/generate", {"prompt": PAIR.instruction, "options": GREEDY | {"num_predict": endless}}
        )
        assert last["done_reason"] == "stop"


@pytest.mark.parametrize(("path", "key"), [("/api/chat", "message"), ("/api/generate", "response")])
def test_without_a_question_the_model_is_there(server: Running, path: str, key: str) -> None:
    with server.http as http:
        done = http.post(path, json={"model": MODEL, "keep_alive": 0}).json()
    assert (done["done"], done["done_reason"]) == (True, "load")
    assert key in done


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "images"),
        ("/api/chat", {"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ("/api/chat", {"messages": user("x"), "options": {"temperature": -1}}, 400, "temperature"),
        ("/api/chat", {"messages": user("x"), "format": "xml"}, 400, "format"),
        ("/api/chat", {"messages": user("x"), "model": "llama3"}, 404, "demo"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, 400, "images"),
        ("/api/generate", {"prompt": "x", "raw": True, "format": "json"}, 400, "format"),
        ("/api/generate", {"prompt": "x", "context": [1]}, 400, "context"),
        ("/api/show", {"model": "llama3"}, 404, "demo"),
        ("/api/pull", {"name": "llama3"}, 404, "demo"),
        ("/api/create", {}, 403, "weblab-local models"),
        ("/api/nothing", {}, 404, "nothing"),
    ],
)
def test_what_is_refused(server: Running, path: str, body: Any, status: int, word: str) -> None:
    found = error(server, path, body)
    assert found[0] == status
    assert word in found[1]


def test_a_strict_server_names_what_it_would_ignore(engine: Engine) -> None:
    with serving(engine, strict=True) as strict:
        body = {"messages": user("x"), "options": {"num_ctx": 4096}}
        assert error(strict, "/api/chat", body) == (400, "options.num_ctx is not supported here. Leave it out.")


def test_it_is_guarded_as_everything_else(engine: Engine) -> None:
    with serving(engine, api_keys=[KEY], max_body=300) as server:
        for path in ("/api/chat", "/api/tags", "/api/version"):
            refused = httpx2.post(server.url + path, json={})
            assert (refused.status_code, refused.json().keys()) == (401, {"error"})
        assert error(server, "/api/chat", {"messages": user("x" * 300)})[0] == 413
        with server.http as http:
            assert http.get("/api/version", headers={"Origin": "https://example.com"}).status_code == 403
            assert http.get("/api/version").json().keys() == {"version"}
