"""Who may ask: keys, names of the host, pages from elsewhere; and what is written down of it."""

import logging
from typing import Any

import openai
import pytest

from tests.server.support import KEY, Running, serving, user
from tests.support.engines import PAIRS
from weblab_local.engine.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.server.config import ServerConfig

OTHER_KEY = "another-key-for-the-tests"


def status(server: Running, path: str = "/v1/models", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with server.http as http:
        return http.get(path, headers=named).status_code


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Any:
    """A server that wants one of two keys."""
    with serving(engine, api_keys=(KEY, OTHER_KEY)) as running:
        yield running


def test_a_key_opens_it(locked: Running) -> None:
    assert status(locked) == 200
    assert status(locked, Authorization=f"Bearer {OTHER_KEY}") == 200
    assert status(locked, Authorization=f"bearer {KEY}") == 200


@pytest.mark.parametrize("value", ["", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY])
def test_nothing_else_does(locked: Running, value: str) -> None:
    assert status(locked, Authorization=value) == 401


def test_the_official_client_without_the_key(locked: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.chat.completions.create(model="default", messages=user("x"))
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json"])
def test_page_health_and_description_are_open(locked: Running, path: str) -> None:
    assert status(locked, path, Authorization="") == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/v1/%6dodels"])
def test_all_of_the_api_is_behind_the_key(locked: Running, path: str) -> None:
    with locked.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()) as connection:
        assert connection.recv(12) == b"HTTP/1.1 401"


@pytest.mark.parametrize(
    "path", ["/v1/../v1/models", "/%76%31/models", "//v1/models", "/V1/models", "http://127.0.0.1/v1/models"]
)
def test_no_other_way_leads_to_it(locked: Running, path: str) -> None:
    with locked.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()) as connection:
        assert connection.recv(12) in (b"HTTP/1.1 401", b"HTTP/1.1 404")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("[::1]:8080", True),
        ("192.168.1.5", True),
        ("my-laptop.example:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:8080", False),
        ("", False),
        ("[", False),
    ],
)
def test_a_name_that_was_rebound_is_refused(engine: Engine, host: str, allowed: bool) -> None:
    with serving(engine, allowed_hosts=["my-laptop.example"]) as server:
        assert status(server, Host=host) == (200 if allowed else 403)
        assert status(server, "/", Host=host) == (200 if allowed else 403)


def test_pages_from_elsewhere_are_refused(server: Running) -> None:
    assert status(server, Origin=server.url) == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1", "ftp://127.0.0.1", ""):
        assert status(server, Origin=origin) == 403


NAME = "chat.example.com"


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (f"https://{NAME}", NAME, True),
        (f"https://{NAME}", f"{NAME}:443", True),
        (f"https://{NAME}:8443", f"{NAME}:8443", True),
        (f"https://{NAME}", NAME.upper(), True),
        ("https://192.168.1.5:8443", "192.168.1.5:8443", True),
        (f"https://{NAME}:8443", NAME, False),
        (f"https://{NAME}", f"{NAME}:80", False),
        (f"http://{NAME}", f"{NAME}:443", False),
        (f"https://{NAME}.evil.example", NAME, False),
        ("https://evil.example", NAME, False),
        ("https://", NAME, False),
        (f"https:{NAME}", NAME, False),
        ("https://evil.example", "evil.example", False),
    ],
)
def test_a_page_behind_https_is_the_servers_own(engine: Engine, origin: str, host: str, allowed: bool) -> None:
    """The proxy passes the browser's Host and Origin on; what else it says, anybody could."""
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    with serving(engine, allowed_hosts=[NAME]) as server, server.http as http:
        headers = said | {"Origin": origin, "Host": host}
        asked = http.post("/v1/chat/completions", headers=headers, json={"messages": user("x"), "max_tokens": 1})
    assert asked.status_code == (200 if allowed else 403)


def test_a_named_page_may_ask(engine: Engine) -> None:
    page = "https://app.example"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with serving(engine, cors_origins=[page], api_keys=[KEY]) as server, server.http as http:
        preflight = http.options("/v1/chat/completions", headers={"Origin": page, **asked})
        allowed = http.get("/v1/models", headers={"Origin": page})
        keyless = http.get("/v1/models", headers={"Origin": page, "Authorization": ""})
        other = http.options("/v1/chat/completions", headers={"Origin": "https://evil.example", **asked})

    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, page)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, page)
    assert (keyless.status_code, keyless.headers["access-control-allow-origin"]) == (401, page)
    assert "access-control-allow-origin" not in other.headers


def test_without_named_pages_no_browser_is_told_yes(server: Running) -> None:
    with server.http as http:
        preflight = http.options(
            "/v1/models", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
        )
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-laptop.example"])
def test_beyond_this_machine_a_key_is_demanded(host: str) -> None:
    with pytest.raises(WeblabError, match="API key"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_keys=[KEY]).host == host


@pytest.mark.parametrize("key", ["", "short", "鍵" * 20, "with a\nline break"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(WeblabError, match="at least"):
        ServerConfig(api_keys=[key])


def test_every_response_carries_the_pages_policy(server: Running) -> None:
    with server.http as http:
        for path in ("/", "/v1/models", "/v1/nothing"):
            headers = http.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers


def test_the_log_has_neither_prompt_nor_key_nor_path(locked: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "山田太郎の秘密"
    with locked.http as http:
        http.post("/v1/chat/completions", json={"messages": user(f"{secret} {PAIRS[0].instruction}"), "max_tokens": 4})
        http.post("/v1/chat/completions", json={"messages": user(secret), secret: 1})
        http.post("/v1/chat/completions", json={"messages": user(secret), "response_format": {"type": secret}})
        http.get(f"/v1/{secret}?key={KEY}")
        http.get("/v1/models", headers={"Authorization": "Bearer a-wrong-key-that-was-typed"})
    server_lines = [r.getMessage() for r in caplog.records if r.name.startswith(("weblab_local.server", "uvicorn"))]

    text = "\n".join(server_lines)
    assert "POST /v1/chat/completions 200" in text
    assert "GET - 404" in text
    for word in (secret, KEY, "a-wrong-key", str(locked.engine.path.parent)):
        assert word not in text


def test_a_failure_is_logged_by_its_place_and_told_to_nobody(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("a prompt that is quoted")

    monkeypatch.setattr("weblab_local.server.chat_completions.Conversation", fails)
    with serving(engine) as server, server.http as http:
        response = http.post("/v1/chat/completions", json={"messages": user("x")})

    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "quoted" not in response.text
    (failure,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert failure.startswith("ZeroDivisionError at ")
    assert "tests.server.test_guard:" in failure
    assert "quoted" not in caplog.text
