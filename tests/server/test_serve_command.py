"""`weblab-local serve` as a program of its own: how it starts, what it says, how it ends, what it never does."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.server.support import KEY, client_of, events, user
from tests.support.conversions import ROOT
from tests.support.engines import PAIRS, PATIENCE
from tests.support.guides import blocks, commands, markdown_files, read
from tests.support.systems import on_posix

SERVE = ("-m", "weblab_local", "serve", "--model", "demo", "--port", "0")
READY = re.compile(r"http://(127\.0\.0\.1|\[::1\]):(\d+)/")


@contextmanager
def started(
    *options: str, code: Sequence[str] = SERVE, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The program, and its port, once it is ready."""
    process = subprocess.Popen(
        [sys.executable, *code, *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
        preexec_fn=_heed_ctrl_c if os.name == "posix" else None,
    )
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := READY.search(line):
                yield process, int(found[2])
                return
        raise AssertionError(said)
    finally:
        process.kill()
        process.communicate()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def refused(*options: str, **variables: str) -> str:
    """What the program says on stderr when it does not start."""
    done = subprocess.run(
        [sys.executable, *SERVE, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | variables,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def ask(port: int, key: str = "") -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"messages": user(PAIRS[0].instruction), "temperature": 0}
    return httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)


@on_posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_answers_until_it_is_told_to_end(number: signal.Signals, code: int) -> None:
    with started() as (process, port):
        assert ask(port).json()["choices"][0]["message"]["content"] == PAIRS[0].response
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (code, "")
    assert "Traceback" not in stderr


@on_posix
def test_a_stream_does_not_keep_it_from_ending() -> None:
    with started() as (process, port):
        body = {"messages": user("x"), "max_tokens": 2000, "logit_bias": {"0": -1e6}, "stream": True}
        with (
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            next(response.iter_lines())
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130


LONG = {"messages": user("x"), "max_tokens": -1, "n": 16, "logit_bias": {"0": -1e6}, "stream": True}
"""Sixteen answers as long as the context, four at a time."""


@on_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stream_is_told_that_the_server_ends(number: signal.Signals) -> None:
    with started() as (process, port), client_of(port, None) as client:
        create: Any = client.chat.completions.create
        stream = create(model="default", **LONG)
        next(iter(stream))
        process.send_signal(number)
        with pytest.raises(openai.APIError, match="being ended") as ended:
            list(stream)
        assert (ended.value.code, process.wait(PATIENCE)) == ("server_ending", 130 if number == signal.SIGINT else -15)


@on_posix
def test_its_last_line_is_done() -> None:
    with started() as (process, port):
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx2.stream("POST", url, json=LONG, timeout=PATIENCE) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            *_chunks, last = events([line for line in lines if not line.startswith(":")])
    assert (last["error"]["code"], last["weblab"]["status"]) == ("server_ending", 503)


def test_keys_from_environment_and_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key-in-the-file\nsecond-key-in-the-file\n")
    with started("--api-key-file", str(keys), WEBLAB_LOCAL_API_KEY=KEY) as (_process, port):
        assert ask(port).status_code == 401
        for key in ("first-key-in-the-file", "second-key-in-the-file", KEY):
            assert ask(port, key).status_code == 200


@on_posix
def test_the_log_is_a_line_for_a_request() -> None:
    with started("--log") as (process, port):
        ask(port)
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate(timeout=PATIENCE)
    (line,) = stderr.splitlines()
    assert re.fullmatch(r"\S+ \S+ POST /v1/chat/completions 200 \d+\.\d+ s", line)


def test_what_would_not_be_safe_is_refused(tmp_path: Path) -> None:
    assert "API key" in refused("--host", "0.0.0.0")
    assert "at least 16" in refused("--api-key", "short")
    assert "cannot be read" in refused("--api-key-file", str(tmp_path / "nothing"))
    assert "is empty" in refused("--api-key", "")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "is empty" in refused("--api-key-file", str(empty))


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be listened on" in refused("--port", str(port))


def test_an_address_that_is_not_this_machines() -> None:
    for host in ("192.0.2.1", "a..b"):
        assert "cannot be listened on" in refused("--host", host, "--api-key", KEY)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")
def test_ipv6() -> None:
    with started("--host", "::1") as (_process, port):
        assert httpx2.get(f"http://[::1]:{port}/health").json() == {"status": "ok"}


def test_it_speaks_japanese() -> None:
    with started(LANGUAGE="ja", LC_ALL="ja_JP.UTF-8") as (process, port):
        error = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": []}).json()["error"]
        assert httpx2.get(f"http://127.0.0.1:{port}/nothing").json()["error"]["message"] == (
            "このアドレスには何もありません。"
        )
        assert error["param"] == "messages"
        assert process.poll() is None


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from weblab_local.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--model", "demo"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert 'pip install "weblab-local[server]"' in done.stderr


OFFLINE = """
import ipaddress, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments
        if event != "socket.getaddrinfo" or not ipaddress.ip_address(address[0]).is_loopback:
            print("REFUSED", event, address, file=sys.stderr, flush=True)
            raise PermissionError(event)

sys.addaudithook(refuse)
from weblab_local.cli import main
main()
"""


@on_posix
def test_it_opens_no_connection() -> None:
    """Every socket call of Python but listening and accepting is refused; a schema from elsewhere is not fetched."""
    remote = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "https://example.org/x.json"}}}
    with started(code=("-c", OFFLINE, *SERVE[2:])) as (process, port):
        url = f"http://127.0.0.1:{port}"
        assert ask(port).json()["choices"][0]["message"]["content"] == PAIRS[0].response
        for path in ("/", "/health", "/openapi.json", "/v1/models"):
            assert httpx2.get(url + path).status_code == 200
        body = {"messages": user("x"), "response_format": remote, "max_tokens": 5}
        assert httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE).status_code == 400
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate(timeout=PATIENCE)
    assert "REFUSED" not in stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("path", [path for path in markdown_files() if "curl -" in read(path)])
def test_the_guides_curl_examples(path: str) -> None:
    examples = [command for command in commands(read(path)) if command.startswith("curl")]
    assert examples
    with started() as (_process, port):
        for example in examples:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", example.replace(":8080", f":{port}")],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert '"error"' not in done.stdout
            first = done.stdout.splitlines()[0].removeprefix("data: ")
            assert json.loads(first)["model"] == "weblab-demo-instruction-sft-Q8_0"


@pytest.mark.parametrize("path", [path for path in markdown_files() if "import OpenAI" in read(path)])
def test_the_guides_examples_with_openais_client(path: str) -> None:
    examples = [block for block in blocks(read(path), "python") if "import OpenAI" in block]
    assert examples
    with started() as (_process, port):
        for example in examples:
            done = subprocess.run(
                [sys.executable, "-c", example.replace(":8080", f":{port}")],
                capture_output=True,
                encoding="utf-8",
                env=os.environ | {"PYTHONUTF8": "1"},
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() in {pair.response for pair in PAIRS}
