"""The options as the help shows them, and the groups that several commands share."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer

from tests.support.command_line import COMMANDS, CommandLine
from weblab_local import SamplingParams, i18n
from weblab_local.cli.chat import chat
from weblab_local.cli.generate import generate
from weblab_local.cli.signatures import command

ONLY_IN_PYTHON = {"presence_penalty", "frequency_penalty", "logit_bias", "grammar", "json_schema"}
SAMPLING = {field.name: getattr(SamplingParams(), field.name) for field in fields(SamplingParams)}


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    monkeypatch.setenv("COLUMNS", "100")
    yield CommandLine(monkeypatch, capsys)
    i18n.use(None)


@pytest.mark.parametrize("function", [chat, generate])
def test_the_sampling_options_are_the_engines_with_its_defaults(weblab: CommandLine, function: Any) -> None:
    options = {one.name: one for one in COMMANDS[(function.__name__,)].params}
    shown = inspect.signature(function).parameters
    assert set(SAMPLING) - set(options) == ONLY_IN_PYTHON
    for name in set(SAMPLING) - ONLY_IN_PYTHON:
        assert (options[name].default or ()) == (SAMPLING[name] or ()), name
        assert name in shown, "for help() and editors"
    page = weblab(function.__name__, "--help").stdout
    listed = re.findall(r"^  --([a-z-]+) ", page, re.MULTILINE)
    assert {name.replace("_", "-") for name in set(SAMPLING) - ONLY_IN_PYTHON} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("group", [["temperature", "stop"], ["n_gpu_layers", "rpc"]])
def test_a_group_keeps_its_order_in_every_command(group: list[str]) -> None:
    first, last = group
    found = []
    for one in COMMANDS.values():
        names = [parameter.name for parameter in one.params]
        if first in names:
            found.append(names[names.index(first) : names.index(last) + 1])
    assert len(found) > 1
    assert all(names == found[0] for names in found)


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("path", COMMANDS)
def test_no_type_is_shown_by_its_name_in_python(weblab: CommandLine, path: tuple[str, ...], language: str) -> None:
    page = weblab(*path, "--help", "--lang", language).stdout
    assert not re.search(r"<|>|list\[|\b(str|int|float|bool|Path|Literal|None)\b", page)


@pytest.mark.parametrize(
    ("name", "english", "japanese"),
    [
        ("generate", "--system", "--system"),
        ("chat", "--system TEXT", "--system 文字列"),
        ("generate", "--top-k INTEGER", "--top-k 整数"),
        ("generate", "--temperature NUMBER", "--temperature 数値"),
        ("generate", "--kv-type f16|q8_0|q4_0", "--kv-type f16|q8_0|q4_0"),
        ("generate", "--lang ja|en", "--lang ja|en"),
        ("generate", "--raw", "--raw"),
        ("serve", "--api-key-file FILE", "--api-key-file ファイル"),
        ("eval", "--output FOLDER", "--output フォルダ"),
        ("eval", "--compare A B", "--compare A B"),
        ("generate", "PROMPT", "PROMPT"),
    ],
)
def test_types_are_named_for_people(weblab: CommandLine, name: str, english: str, japanese: str) -> None:
    for language, expected in (("en", english), ("ja", japanese)):
        page = weblab(name, "--help", "--lang", language).stdout
        assert bool(re.search(rf"^  {re.escape(expected)}(  |$)", page, re.MULTILINE)) == (english != "--system")


@pytest.mark.parametrize("path", COMMANDS)
def test_options_that_may_be_repeated_say_so(weblab: CommandLine, path: tuple[str, ...]) -> None:
    repeatable = [one.opts[0] for one in COMMANDS[path].params if getattr(one, "multiple", False)]
    page = weblab(*path, "--help").stdout
    entries = re.split(r"^  (?=-)", page, flags=re.MULTILINE)[1:]
    assert [entry.split()[0] for entry in entries if "may be repeated" in " ".join(entry.split())] == repeatable
    japanese = "".join(weblab(*path, "--help", "--lang", "ja").stdout.split())  # lines end anywhere
    assert japanese.count("複数回指定可") == len(repeatable)


@dataclass(frozen=True)
class Pair:
    """Two options."""

    left: Annotated[int, typer.Option(help="One.")] = 1
    right: Annotated[str | None, typer.Option(help="Other.")] = None


def test_a_command_gets_its_group_as_one_object() -> None:
    got: list[tuple[str, Pair]] = []

    @command
    def both(name: Annotated[str, typer.Argument()], *, pair: Pair) -> None:
        got.append((name, pair))

    assert list(inspect.signature(both).parameters) == ["name", "left", "right", "lang"]
    both("a")
    both("b", right="x")
    assert got == [("a", Pair()), ("b", Pair(right="x"))]
    with pytest.raises(TypeError):
        both("c", pair=Pair())


def test_an_option_of_a_type_that_the_help_cannot_name_is_refused() -> None:
    def wrong(*, value: Annotated[complex, typer.Option()] = 0j) -> None:
        assert value

    with pytest.raises(TypeError, match="metavar"):
        command(wrong)
