"""The addresses of llama.cpp's server, in its form: tokens beside those of tokenizers, properties beside the file."""

import json
from typing import Any

import pytest

from tests.server import support
from tests.server.support import KEY, Running, serving, until, user
from tests.support import reference
from tests.support.engines import PAIRS, hold
from weblab_local.engine.engine import Engine
from weblab_local.engine.prompt import CHAT_TEMPLATE

TEXT = "日本の首都は？ か\u3099 <|endoftext|> 👩🏽‍🚀"


def post(server: Running, path: str, **body: Any) -> Any:
    with server.http as http:
        response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("more", [{}, {"add_special": True, "parse_special": True}, {"with_pieces": False}])
def test_the_tokens_of_a_text(server: Running, more: dict[str, Any]) -> None:
    plain = TEXT.replace("<|endoftext|>", "")
    assert post(server, "/tokenize", content=plain, **more) == {"tokens": reference.encode(plain)}


def test_a_special_tokens_name_is_a_text_as_any(server: Running) -> None:
    tokens = post(server, "/tokenize", content=TEXT)["tokens"]
    assert reference.END not in tokens
    assert post(server, "/detokenize", tokens=tokens) == {"content": TEXT.replace("か\u3099", "が")}


def test_texts_and_ids_may_be_mixed(server: Running) -> None:
    found = post(server, "/tokenize", content=["日本", 5, 6.0, "の首都"])["tokens"]
    assert found == [*reference.encode("日本"), 5, 6, *reference.encode("の首都")]


def test_pieces_are_texts_or_bytes(server: Running) -> None:
    found = post(server, "/tokenize", content="日本👩🏽‍🚀", with_pieces=True)["tokens"]
    assert [one["id"] for one in found] == reference.encode("日本👩🏽‍🚀")
    assert any(isinstance(one["piece"], list) for one in found)
    pieces = [bytes(p) if isinstance(p, list) else p.encode() for p in (one["piece"] for one in found)]
    assert b"".join(pieces).decode() == "日本👩🏽‍🚀"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": [3000]}),
        ("/tokenize", {"content": "\ud800"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": ["x"]}),
    ],
)
def test_what_has_no_tokens(server: Running, path: str, body: Any) -> None:
    with server.http as http:
        response = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_properties(server: Running) -> None:
    with server.http as http:
        props = http.get("/props").json()
        assert http.get("/health").json() == {"status": "ok"}
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["default_generation_settings"]["params"]["temperature"] == 0.7
    assert (props["total_slots"], props["chat_template"]) == (4, CHAT_TEMPLATE)
    assert (props["bos_token"], props["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert (props["model_alias"], props["model_path"]) == (
        "weblab-demo-instruction-sft-Q8_0",
        "weblab-demo-instruction-sft-Q8_0.gguf",
    )
    assert props["modalities"] == {"vision": False, "audio": False}


def test_they_want_the_key_and_a_place(engine: Engine) -> None:
    with serving(engine, api_keys=[KEY], queue=0) as server, server.http as http:
        for path in ("/tokenize", "/detokenize", "/props"):
            assert http.request("GET", path, headers={"Authorization": ""}).status_code == 401
        assert http.post("/tokenize", json={"content": "x"}, headers={"Origin": "https://x.org"}).status_code == 403
        gate, held = hold(engine)
        asked = {"messages": user(PAIRS[0].instruction)}
        chat = support.post("/v1/chat/completions", asked, f"Authorization: Bearer {KEY}")
        taken = [server.raw(chat) for _ in range(engine.n_parallel)]
        until(lambda: len(engine._scheduler._waiting) == engine.n_parallel)
        assert http.post("/tokenize", json={"content": "x"}).status_code == 429
        gate.open()
        list(held)
        for connection in taken:
            connection.close()
