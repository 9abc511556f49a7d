"""stdin and stdout at a Japanese Windows console, where a pipe is in cp932 and a file that is piped in is UTF-8."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convert.demo.corpus import read_corpus
from weblab_local import streams

ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"
GREEDY = ("--model", "demo", "--temperature", "0", "--threads", "1")


def weblab(*arguments: str, stdin: bytes = b"", encoding: str = "cp932") -> bytes:
    """What the program writes to a pipe of that encoding."""
    done = subprocess.run(
        [sys.executable, "-m", "weblab_local", *arguments],
        input=stdin,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("stdin", [CAPITAL.encode("cp932"), CAPITAL.encode(), CAPITAL.encode("utf-8-sig") + b"\r\n"])
def test_what_is_piped_in_may_be_in_the_consoles_encoding_or_in_utf8(stdin: bytes) -> None:
    assert weblab("generate", *GREEDY, stdin=stdin).decode("cp932") == ANSWERS[CAPITAL] + "\n"
    lines = weblab("chat", *GREEDY, stdin=stdin + b"\r\n" + stdin).decode("cp932").splitlines()
    assert lines == [ANSWERS[CAPITAL]] * 2


def test_line_ends_of_windows_are_line_ends() -> None:
    plain = weblab("tokenize", "--model", "demo", "--json", stdin="一\n二\n".encode())
    assert weblab("tokenize", "--model", "demo", "--json", stdin="一\r\n二\r\n".encode("cp932")) == plain


@pytest.mark.parametrize("encoding", ["cp932", "cp1252", "ascii"])
def test_json_is_json_whatever_the_pipes_encoding(encoding: str) -> None:
    """JSON is UTF-8, and nothing of an answer may be lost in it."""
    answer = ("generate", *GREEDY, "--json", CAPITAL)
    assert _timeless(weblab(*answer, encoding=encoding)) == _timeless(weblab(*answer, encoding="utf-8"))
    report = json.loads(weblab("--lang", "ja", "doctor", "--json", encoding=encoding))
    assert report["advice"][0]["problem"].startswith("デモ以外のモデルが")


def _timeless(output: bytes) -> Any:
    completion = json.loads(output.decode())
    del completion["stats"]
    assert completion["text"] == ANSWERS[CAPITAL]
    return completion


def test_lines_in_a_pipe_end_as_a_shell_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$(...)` in Git Bash keeps the carriage return that Python would add on Windows."""
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="cp932", newline="\r\n"))
    streams.prepare()
    print("結果 🗂️")
    sys.stdout.flush()
    assert pipe.getvalue() == "結果 ??\n".encode("cp932")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are text")
def test_a_path_that_is_no_text_comes_out_as_it_is(tmp_path: Path, demo_checkpoint: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/" + "結果".encode("cp932")
    done = subprocess.run(
        [sys.executable, "-m", "convert", str(demo_checkpoint), "--quant", "Q8_0", "--output", folder],
        capture_output=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, folder + b"/weblab-demo-instruction-sft-Q8_0.gguf\n"), done.stderr
