"""Every command at a Japanese Windows console without Unicode (cp932): what it prints, and its progress bars."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.evaluation.support import write_data
from tests.support.command_line import COMMANDS
from tests.support.conversions import ROOT
from tests.support.systems import on_posix
from weblab_local.cli.chat_terminal import LineReader
from weblab_local.models.store import demo_model, models_dir

DEMO = ("--model", "demo")
QUICK = ("--n-prompt", "4", "--n-generate", "2", "--repetitions", "1", "--threads", "1")
NAME = "デモ 一号 🎌"
LONG = "長い話をします。" * 60

ENDING: dict[tuple[str, ...], str] = {
    ("generate", *DEMO, "--temperature", "0", "日本の首都はどこですか？"): "東京",
    ("chat", *DEMO): "/help",
    ("tokenize", *DEMO, "日本"): "日本",
    ("doctor",): "インストール状況",
    ("bench", *DEMO, *QUICK): "メモリ帯域幅",
    ("models",): "デモ 一号 ?",
    ("models", "verify"): "SHA-256 の記録がありません",
    ("models", "use", NAME): "デモ 一号 ?",
    ("models", "import", "{demo}"): "weblab-demo-instruction-sft-Q8_0",
    ("models", "rm", NAME): "デモ 一号 ?",
    ("eval", *DEMO, "--tasks", "jnli", "--data", "{data}", "--limit", "1"): "タスク",
}
"""Commands that come to an end, and what each prints."""

STAYING: dict[tuple[str, ...], str] = {
    ("serve", *DEMO, "--port", "0"): "http://127.0.0.1:",
    ("app", *DEMO, "--no-browser"): "http://127.0.0.1:",
    ("rpc-worker", "--port", "0"): "で待ち受けています",
}
"""Commands that go on until they are ended, and what each says when it is ready."""


def japanese(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "weblab_local", "--lang", "ja", *arguments]


def test_no_command_is_left_out() -> None:
    groups = {path[:-1] for path in COMMANDS if path} - {("models",)}
    called = [path for path in COMMANDS if any(command[: len(path)] == path for command in ENDING | STAYING)]
    hidden = {("self-test-device",)}  # doctor --self-test starts it and reads what it prints
    assert {*called} - groups == {*COMMANDS} - groups - hidden


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONIOENCODING": "cp932", "COLUMNS": "200"}


@pytest.mark.parametrize("command", ENDING, ids=" ".join)
def test_a_command_prints_its_japanese(command: Sequence[str], environment: dict[str, str], tmp_path: Path) -> None:
    models_dir().mkdir(parents=True)
    shutil.copy(demo_model(), models_dir() / f"{NAME}.gguf")
    write_data(tmp_path / "data")
    arguments = [word.format(demo=demo_model(), data=tmp_path / "data") for word in command]
    done = subprocess.run(
        japanese(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="cp932",
        env=environment,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert ENDING[tuple(command)] in done.stdout + done.stderr


@pytest.mark.parametrize("command", STAYING, ids=" ".join)
def test_a_command_that_stays_says_that_it_is_ready(command: Sequence[str], environment: dict[str, str]) -> None:
    with subprocess.Popen(
        japanese(*command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="cp932",
        env=environment,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if STAYING[tuple(command)] in line:
                break
        process.kill()
    assert STAYING[tuple(command)] in said
    assert re.search("[ぁ-ん]", said)


@on_posix
@pytest.mark.parametrize(
    ("command", "title"),
    [
        (
            ("weblab_local", "--lang", "ja", "generate", *DEMO, "--max-tokens", "4", "長い話をします。" * 60),
            "モデルを読み込んで",
        ),
        (("weblab_local", "--lang", "ja", "models", "import", "{file}"), "デモ 一号"),
        (("convert", "{checkpoint}", "--quant", "Q8_0", "--output", "{folder}"), "converting"),
    ],
    ids=["loading", "importing", "converting"],
)
def test_a_progress_bar_at_a_terminal(
    command: Sequence[str], title: str, environment: dict[str, str], tmp_path: Path, demo_checkpoint: Path
) -> None:
    file = shutil.copy(demo_model(), tmp_path / f"{NAME}.gguf")
    places = {"file": file, "checkpoint": demo_checkpoint, "folder": tmp_path / "結果 🗂️"}
    code, shown = at_a_terminal(*(word.format(**places) for word in command), environment=environment)
    assert (code, "Traceback" in shown) == (0, False), shown
    assert title in shown
    assert set("-━") & set(shown)


def at_a_terminal(*arguments: str, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code of `python -m` with these arguments, and what it writes to stderr, which is a terminal in cp932."""
    terminal, stderr = os.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environment | {"TERM": "xterm"},
        cwd=ROOT,
    ) as process:
        os.close(stderr)
        with suppress(OSError):  # EIO: nobody has the other end any more
            while data := os.read(terminal, 65536):
                shown += data
    os.close(terminal)
    return process.returncode, shown.decode("cp932")


def test_on_windows_lines_are_edited_only_where_stdout_is_the_console_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """prompt_toolkit wants the console's screen there, and fails where `chat > FILE` has redirected it."""
    typed = io.StringIO("一\n二\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "stdin", typed)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert list(LineReader()) == ["一", "二"]
