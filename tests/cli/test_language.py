"""`--lang` stands wherever other options do, and help and errors obey it there."""

from collections.abc import Iterator

import pytest

from tests.support.command_line import COMMANDS, CommandLine
from weblab_local import i18n

HELP = "このヘルプを表示して終了する。"


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "en")
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    yield CommandLine(monkeypatch, capsys)
    i18n.use(None)


@pytest.mark.parametrize("path", COMMANDS)
def test_a_commands_help_obeys_it_wherever_it_stands(weblab: CommandLine, path: tuple[str, ...]) -> None:
    page = weblab("--lang", "ja", *path, "--help")
    assert (page.code, HELP in page.stdout, "--lang ja|en" in page.stdout) == (0, True, True)
    assert weblab(*path, "--help", "--lang", "ja") == page
    assert weblab(*path, "--lang", "ja", "--help") == page
    assert weblab(*path, "-h", "--lang=ja") == page
    assert HELP not in weblab(*path, "--help").stdout


def test_without_any_argument_the_help_is_shown(weblab: CommandLine) -> None:
    page = weblab()
    assert page.code == 2
    assert page.stdout + page.stderr == weblab("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chatt", "--lang", "ja"], "'chatt' というコマンドはありません。もしかして: 'chat'"),
        (["models", "uze", "--lang", "ja"], "'uze' というコマンドはありません。もしかして: 'use'"),
        (["generate", "--qqq", "--lang", "ja", "x"], "--qqq というオプションはありません。"),
        (["generate", "--lang", "ja", "--max-tokens", "0", "x"], "1 以上でなければなりません。"),
        (["generate", "--max-tokens", "0", "x", "--lang=ja"], "1 以上でなければなりません。"),
        (["models", "use", "--lang", "ja"], "引数 'name' がありません。"),
        (["rpc-worker", "--port", "x", "--lang", "ja"], "整数でなければなりません。"),
    ],
)
def test_usage_errors_obey_it(weblab: CommandLine, arguments: list[str], said: str) -> None:
    done = weblab(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith(said)


@pytest.mark.parametrize("arguments", [["models", "--lang", "ja"], ["--lang", "en", "models", "--lang", "ja"]])
def test_messages_obey_it_and_the_last_one_counts(weblab: CommandLine, arguments: list[str]) -> None:
    done = weblab(*arguments)
    assert (done.code, "にはまだモデルがありません。" in done.stderr) == (0, True)


@pytest.mark.parametrize(
    "command", ["chat", "generate", "serve", "app", "rpc-worker", "doctor", "bench", "eval", "models"]
)
def test_a_language_that_is_not_spoken_is_refused(weblab: CommandLine, command: str) -> None:
    done = weblab(command, "--lang", "de")
    assert (done.code, done.stdout) == (2, "")
    assert "'de' is not one of 'ja', 'en'" in done.stderr


def test_behind_two_dashes_it_is_text(weblab: CommandLine) -> None:
    done = weblab("generate", "--model", "no-such-model", "--", "--lang=ja")
    assert done.code == 1
    assert "There is no model called" in done.stderr
