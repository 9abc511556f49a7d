"""`weblab-local serve --sidecar` as an app's helper process, and examples/sidecar.mjs, which is such an app."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from convert.demo.corpus import read_corpus
from tests.support.conversions import ROOT
from tests.support.systems import on_posix

ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"
EXPLAIN = "大規模言語モデルについて説明してください。"
PATIENCE = 60

SIDECAR = (sys.executable, "-m", "weblab_local", "serve", "--model", "demo", "--port", "0", "--sidecar")
HOST_APP = """
const sidecar = require("node:child_process").spawn(process.argv[1], process.argv.slice(2), {
  stdio: ["pipe", "inherit", "inherit"],
});
"""
"""An app on Node that starts what it is given, with a pipe for its stdin, and stays."""

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", cwd=ROOT
    )


@contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], list[psutil.Process]]]:
    """The process, the line that the sidecar announces itself with, and the sidecar with all between the two."""
    with start(*command) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        family = psutil.Process(process.pid).children(recursive=True)
        assert ready["pid"] in {process.pid, *(child.pid for child in family)}
        try:
            yield process, ready, family
        finally:
            for one in family:
                if one.is_running():
                    one.kill()
            process.kill()


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The example as its readers run it, with the command `weblab-local` on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["node", "examples/sidecar.mjs", *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )


def status(port: int, token: str | None) -> int:
    """What the server answers to whoever asks for its models with that key."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@needs_node
@pytest.mark.parametrize(
    ("arguments", "instruction"), [((), EXPLAIN), (("demo", CAPITAL), CAPITAL)], ids=["its own", "the reader's"]
)
def test_the_example_prints_the_answer(arguments: tuple[str, ...], instruction: str) -> None:
    done = node(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWERS[instruction] + "\n", "")


@needs_node
def test_the_example_says_why_there_is_no_model() -> None:
    done = node("nothing-of-that-name")
    assert (done.returncode, done.stdout) == (1, "")
    first, *_, last = done.stderr.splitlines()
    assert "There is no model called 'nothing-of-that-name'" in first
    assert last == "sidecar.mjs: weblab-local ended with 1"


@needs_node
def test_the_example_says_what_the_server_refuses() -> None:
    done = node("demo", CAPITAL * 1000)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"sidecar\.mjs: .*\d+ tokens.*\n(.*\n)?", done.stderr)


def test_it_announces_itself_in_one_line_and_ends_when_its_stdin_closes() -> None:
    with started(*SIDECAR) as (process, ready, _family):
        assert ready.keys() == {"port", "token", "pid", "model"}
        assert (ready["pid"], ready["model"]) == (process.pid, "weblab-demo-instruction-sft-Q8_0")
        assert status(ready["port"], ready["token"]) == 200
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stdout, stderr) == (0, "", "")


PATCHED = """
import os, psutil
from weblab_local.cli import main
%s
main()
"""


def test_a_parent_that_is_gone_before_it_is_watched_ends_it() -> None:
    """As on Windows, where the process keeps the number of a parent that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    with start(sys.executable, "-c", PATCHED % f"os.getppid = lambda: {dead.pid}", *SIDECAR[3:]) as process:
        assert (process.wait(PATIENCE), process.stderr and process.stderr.read()) == (0, "")


@pytest.mark.parametrize(
    "change",
    ["def wait(self): raise psutil.AccessDenied(self.pid)\npsutil.Process.wait = wait", "os.getppid = lambda: 0"],
    ids=["an administrator's on Windows", "outside of the container"],
)
def test_a_parent_that_cannot_be_watched_is_not_taken_for_one_that_is_gone(change: str) -> None:
    with started(sys.executable, "-c", PATCHED % change, *SIDECAR[3:]) as (process, ready, _family):
        assert status(ready["port"], ready["token"]) == 200
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stdout, stderr) == (0, "", "")


def test_only_who_has_the_token_is_answered_and_it_is_another_each_time() -> None:
    with started(*SIDECAR) as (_, first, _), started(*SIDECAR) as (_, second, _):
        assert first["token"] != second["token"]
        for token in (None, "", second["token"]):
            assert status(first["port"], token) == 401
        assert status(first["port"], first["token"]) == 200


@on_posix
@needs_node
@pytest.mark.parametrize("between", [(), ("sh", "-c", '"$@"; exit $?', "sh")], ids=["", "with a shell between"])
def test_a_parent_that_is_killed_leaves_no_process_behind(between: tuple[str, ...]) -> None:
    with started("node", "-e", HOST_APP, *between, *SIDECAR) as (process, ready, family):
        assert len(family) == 1 + bool(between)
        assert status(ready["port"], ready["token"]) == 200
        process.kill()
        assert psutil.wait_procs(family, PATIENCE)[1] == []


@on_posix
@needs_node
def test_a_shell_between_that_is_killed_leaves_no_process_behind() -> None:
    """Here the pipe stays open: the sidecar has to notice that its own parent is gone."""
    with started("node", "-e", HOST_APP, "sh", "-c", '"$@"; exit $?', "sh", *SIDECAR) as (_process, ready, family):
        shell = psutil.Process(ready["pid"]).parent()
        assert shell is not None
        assert shell.name() == "sh"
        shell.kill()
        assert psutil.wait_procs(family, PATIENCE)[1] == []
