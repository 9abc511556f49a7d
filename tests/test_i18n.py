"""Japanese and English: every message is in the catalog, and the program speaks the language that was asked for."""

import ast
import inspect
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from wcwidth import wcswidth

import weblab_local
from tests.support.command_line import COMMANDS, CommandLine
from weblab_local import i18n

PACKAGE = Path(weblab_local.__file__).parent
PO = i18n.LOCALE_DIR / "ja" / "LC_MESSAGES" / f"{i18n.DOMAIN}.po"
TREES = {file.relative_to(PACKAGE): ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}

NO_MODEL = ("There is no model called", "というモデルは")
LOCALE_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    with PO.open("rb") as file:
        return read_po(file, locale="ja", abort_invalid=True)


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def source_messages() -> dict[str, str]:
    """The English messages, and the file that each is in."""
    return {
        call.args[0].value: str(file)
        for file, tree in TREES.items()
        for call in calls(tree, "_", "n_")
        if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    }


def placeholders(message: str) -> list[tuple[str, str | None, str | None]]:
    """Names, formats and conversions, sorted."""
    parts = string.Formatter().parse(message)
    return sorted((name, form, conversion) for _text, name, form, conversion in parts if name is not None)


def help_texts(command: Any) -> set[str]:
    """The texts that a command's help shows, as they are in the code."""
    texts = [command.help]
    for parameter in command.get_params(typer.Context(command)):
        texts += [parameter.help, parameter.show_default if isinstance(parameter.show_default, str) else None]
    return {inspect.cleandoc(text) for text in texts if text}


def test_every_message_is_translated_and_no_other(catalog: Catalog) -> None:
    translated = {str(message.id) for message in catalog if message.id and message.string and not message.fuzzy}
    assert translated == set(source_messages()).union(*map(help_texts, COMMANDS.values()))
    assert not catalog.obsolete


def test_translations_have_the_same_placeholders(catalog: Catalog) -> None:
    for message in catalog:
        assert placeholders(str(message.id)) == placeholders(str(message.string)) or not message.id, message.id


def test_placeholders_have_names() -> None:
    assert [text for text in source_messages() if not all(name.isidentifier() for name, *_ in placeholders(text))] == []


def test_translations_are_in_japanese_windows_character_set(catalog: Catalog) -> None:
    for message in catalog:
        assert str(message.string).encode("cp932").decode("cp932") == message.string or not message.id


def test_the_compiled_catalog_is_up_to_date(catalog: Catalog) -> None:
    with PO.with_suffix(".mo").open("rb") as file:
        compiled = read_mo(file)
    assert texts(compiled) == texts(catalog), "run the pybabel command in weblab_local/i18n.py"


def texts(catalog: Catalog) -> dict[str, str]:
    """The Japanese by the English."""
    return {str(message.id): str(message.string) for message in catalog if message.id}


def test_messages_are_whole_literals() -> None:
    """No f-string, no concatenation; `_` may also get a variable, whose text `n_` marked."""
    wrong = []
    for file, tree in TREES.items():
        for call in calls(tree, "_", "n_"):
            literal = isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
            marked = isinstance(call.args[0], ast.Name) and call.func.id == "_"  # type: ignore[attr-defined]
            if len(call.args) != 1 or call.keywords or not (literal or marked):
                wrong.append(f"{file}:{call.lineno}: {ast.unparse(call)}")
    assert wrong == []


def test_errors_are_translated() -> None:
    """Neither message nor remedy of an error of this package is a bare literal, also not before `.format`."""
    names = error_classes()
    assert {"WeblabError", "NotEnoughMemory", "SamplingError", "SessionError"} <= names
    wrong = [
        f"{file}:{call.lineno}: {ast.unparse(text)}"
        for file, tree in TREES.items()
        for call in calls(tree, *names)
        for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        for text in bare_texts(argument)
    ]
    assert wrong == []


def error_classes() -> set[str]:
    names = {"WeblabError"}
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while found := {one.name for one in classes if {ast.unparse(base) for base in one.bases} & names} - names:
        names |= found
    return names


def bare_texts(node: ast.expr) -> Iterator[ast.expr]:
    """Literals and f-strings that the expression's value is made of."""
    match node:
        case ast.Constant(value=str(text)) if text.strip():
            yield node
        case ast.JoinedStr():
            yield node
        case ast.IfExp(body=left, orelse=right) | ast.BinOp(left=left, right=right):
            yield from bare_texts(left)
            yield from bare_texts(right)
        case ast.BoolOp(values=values):
            for value in values:
                yield from bare_texts(value)
        case ast.Call(func=ast.Attribute(value=inner, attr="format" | "rstrip" | "strip")):
            yield from bare_texts(inner)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('"Shorten it."', True),
        ('f"{n} tokens"', True),
        ('"{n} tokens".format(n=n)', True),
        ('_("Shorten it.") if n else "Leave it."', True),
        ('" ".join(errors) or "no reason"', True),
        ('_("{n} tokens").format(n=f"{n:.1f}")', False),
        ('", ".join(names)', False),
    ],
)
def test_bare_texts_are_found(code: str, found: bool) -> None:
    assert bool(list(bare_texts(ast.parse(code, mode="eval").body))) == found


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja"}, "ja"),
        ({"LANG": "Japanese_Japan.932"}, "ja"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANG": "jam_JM.UTF-8"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "ja_JP.UTF-8", "LANG": "en_US.UTF-8"}, "ja"),
        ({"LC_ALL": "C", "LC_MESSAGES": "ja_JP.UTF-8", "LANG": "ja_JP.UTF-8"}, "en"),
        ({"LC_ALL": "POSIX", "LANGUAGE": "ja"}, "en"),
        ({"LANGUAGE": "en:ja", "LANG": "ja_JP.UTF-8"}, "en"),
        ({"LANGUAGE": "fr:ja:en", "LANG": "fr_FR.UTF-8"}, "ja"),
        ({"LANGUAGE": "fr:de", "LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANGUAGE": "ja"}, "ja"),
        ({"LANGUAGE": "", "LANG": "ja_JP.UTF-8"}, "ja"),
    ],
)
def test_the_systems_language(variables: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOCALE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert i18n.system_language() == language


@pytest.mark.parametrize(
    ("name", "language"),
    [("ja_JP", "ja"), ("Japanese_Japan", "ja"), ("ja-JP", "ja"), ("English_United States", "en"), (None, "en")],
)
def test_windows_and_macos_are_asked_by_python(
    name: str | None, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in LOCALE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("locale.getlocale", lambda: (name, "cp932"))
    assert i18n.system_language() == language


def test_a_locale_that_python_cannot_read_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> None:
        raise ValueError("unknown locale: XY")

    for variable in LOCALE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("locale.getlocale", unknown)
    assert i18n.system_language() == "en"


def run(*arguments: str, encoding: str = "utf-8", **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in an environment without a language but the given one."""
    inherited = {name: value for name, value in os.environ.items() if name not in LOCALE_VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "weblab_local", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding=encoding,
        env=inherited | {"PYTHONIOENCODING": encoding} | variables,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "japanese"),
    [
        (["--lang", "ja"], {}, True),
        (["--lang", "ja"], {"LANG": "en_US.UTF-8"}, True),
        ([], {"LANG": "ja_JP.UTF-8"}, True),
        (["--lang", "en"], {"LANG": "ja_JP.UTF-8"}, False),
        ([], {"LANG": "en_US.UTF-8"}, False),
        ([], {}, False),
    ],
)
def test_the_program_speaks_as_asked(arguments: list[str], variables: dict[str, str], japanese: bool) -> None:
    done = run(*arguments, "generate", "--model", "no-such-model", "x", **variables)
    assert done.returncode == 1
    assert (NO_MODEL[1] in done.stderr, NO_MODEL[0] in done.stderr) == (japanese, not japanese)
    assert done.stdout == ""


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    yield CommandLine(monkeypatch, capsys)
    i18n.use(None)


def unspaced(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_in_the_language_asked_for(weblab: CommandLine, path: tuple[str, ...], catalog: Catalog) -> None:
    japanese = texts(catalog)
    pages = {language: unspaced(weblab("--lang", language, *path, "--help").stdout) for language in ("en", "ja")}
    for text in help_texts(COMMANDS[path]) | {"Usage:", "Options"}:
        assert (unspaced(text) in pages["en"], unspaced(japanese[text]) in pages["ja"]) == (True, True), text
        assert unspaced(text) not in pages["ja"] or len(text) < 8, text
    for name, command in getattr(COMMANDS[path], "commands", {}).items():
        entry = name + unspaced(japanese[inspect.cleandoc(command.help)].partition("\n\n")[0])
        assert (entry in pages["ja"]) is not command.hidden
    assert "default:" not in pages["ja"]


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("language", ["en", "ja"])
def test_help_fits_the_terminal(
    weblab: CommandLine, language: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for path in COMMANDS:
        lines = weblab("--lang", language, *path, "--help").stdout.splitlines()
        assert max(map(wcswidth, lines[1:])) <= columns
        assert not [line for line in lines if line.strip()[:1] in tuple("、。」)ーっ")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such"], "'no-such' というコマンドはありません。"),
        (["chatt"], "'chatt' というコマンドはありません。もしかして: 'chat'"),
        (["generate", "--no-such", "x"], "--no-such というオプションはありません。似たもの: --n-ctx, --no-drafts"),
        (["generate", "--qqq", "x"], "--qqq というオプションはありません。"),
        (["generate", "a", "b"], "余分な引数があります: b"),
        (["generate", "--stop"], "オプション '--stop' には値が必要です。"),
        (["generate", "--json=1"], "オプション '--json' に値は指定できません。"),
        (["generate", "--max-tokens", "0", "x"], "'--max-tokens' の値が正しくありません: 1 以上でなければなりません。"),
        (["generate", "--top-p", "2", "x"], "'--top-p' の値が正しくありません: 1 以下でなければなりません。"),
        (["generate", "--top-k", "viele", "x"], "'--top-k' の値が正しくありません: 整数でなければなりません。"),
        (["generate", "--top-p", "viel", "x"], "'--top-p' の値が正しくありません: 数値でなければなりません。"),
        (["generate", "--kv-type", "q2", "x"], "'q2' は 'f16', 'q8_0', 'q4_0' のどれでもありません。"),
        (["models", "use"], "引数 'name' がありません。"),
    ],
)
def test_a_wrong_command_line_is_explained_in_japanese(weblab: CommandLine, arguments: list[str], said: str) -> None:
    done = weblab("--lang", "ja", *arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith(said)
    assert not re.search("Usage|Try|Error|Invalid", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "モデルと対話します。"),
        (["models"], "にはまだモデルがありません。"),
        (["generate", "--model", "no-such-model", "x"], NO_MODEL[1]),
        (["generate", "--model", "demo", " "], "指示が空です。"),
        (["bench", "--model", "demo", "--repack", "maybe"], "--repack に指定できるのは on と off です。"),
        (["rpc-worker", "--host", "0.0.0.0"], "信頼できるネットワーク"),
    ],
)
def test_a_japanese_console_without_unicode(arguments: list[str], said: str) -> None:
    done = run("--lang", "ja", *arguments, encoding="cp932")
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_characters_that_a_console_lacks_are_replaced() -> None:
    done = run("--lang", "ja", "tokenize", "--model", "demo", "日本", encoding="ascii")
    assert (done.returncode, "?" in done.stdout) == (0, True), done.stderr


def test_doctor_in_japanese_throughout() -> None:
    done = run("--lang", "ja", "doctor", encoding="cp932")
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert titles == ["インストール状況", "このマシン", "モデル", "改善点"]
    assert "動作確認: demo は応答します。" in done.stdout
