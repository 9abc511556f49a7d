"""Help and usage errors in the language in use.

Nothing has to be marked for it: the texts of an app made with `Commands` are written in English where typer expects
them, which is `help=`, `show_default="..."` and the docstring of a command's function, and are translated when they are
shown. tests/test_i18n.py walks through all commands and wants the Japanese of every such text in the catalog, as it is
there without its indentation. Only a `metavar=` that has a Japanese one is marked, with `n_`.

Typer's own help breaks lines at spaces only and cuts off what is longer, which is most of a Japanese sentence; so the
pages are laid out here.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import cleandoc
from typing import Any

import typer
from rich.cells import cell_len
from typer.core import TyperCommand, TyperGroup

from weblab_local.i18n import _, n_

USAGE_ERRORS = (
    n_("No such command '{name}'. Did you mean {others}?"),
    n_("No such command '{name}'."),
    n_("No such option: {name} (Possible options: {others})"),
    n_("No such option: {name}"),
    n_("Missing argument '{name}'."),
    n_("Missing command."),
    n_("Got unexpected extra argument(s) ({values})"),
    n_("Option '{name}' requires an argument."),
    n_("Option '{name}' does not take a value."),
    n_("Invalid value for '{name}': {reason}"),
    n_("Value error, '{value}' is not one of {choices}."),
    n_("Input should be greater than or equal to {limit}"),
    n_("Input should be less than or equal to {limit}"),
    n_("Input should be a valid integer, unable to parse string as an integer"),
    n_("Input should be a valid number, unable to parse string as a number"),
)
"""How typer words what is wrong with a command line, special cases first. What it words otherwise stays English."""

WIDEST = 110
"""Columns that a page takes at most."""

_WIDE = r"\u3000-\u9fff\uff00-\uff60"
_PIECE = re.compile(rf"\s+|[(「\[]*(?:[^\s{_WIDE}]+|[{_WIDE}])[)」\];:、。ーっゃゅょッャュョ]*")
"""White space, a word, or a Japanese character, with what must stay beside it in a line."""


class Commands(typer.Typer):
    """A typer app that speaks the language in use."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """As typer's."""
        return super().command(name, cls=_Command, **settings)


class _Command(TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_usage(self, ctx))


class _Group(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_usage(self, ctx))

    def make_context(self, *args: Any, **settings: Any) -> Any:
        with _usage_errors_explained():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _usage_errors_explained():
            return super().invoke(ctx)


def page(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    """The help of a command."""
    sections: dict[str, list[tuple[str, str]]] = {_("Arguments"): [], _("Options"): [], _("Commands"): []}
    for parameter in command.get_params(ctx):
        title = _("Arguments") if parameter.param_type_name == "argument" else _("Options")
        sections[title].append(_entry(parameter))
    if isinstance(command, TyperGroup):
        for name, one in command.commands.items():
            if one.hidden:
                continue
            sections[_("Commands")].append((name, _said(one.help).partition("\n\n")[0]))
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = [_usage(command, ctx), ""]
    for paragraph in filter(None, _said(command.help).split("\n\n")):
        lines += [*wrapped(paragraph, width, indent=2), ""]
    for title, entries in sections.items():
        if entries:
            lines += [typer.style(f"{title}:", bold=True), *_two_columns(entries, width), ""]
    return "\n".join(lines)


def _usage(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    pieces = [piece.strip("{}").upper() for piece in command.collect_usage_pieces(ctx)]
    return " ".join([_("Usage:"), ctx.command_path, *pieces])


def _entry(parameter: Any) -> tuple[str, str]:
    """Name and text of a parameter: `--top-k INTEGER` and what it means, its default, limits and so on in brackets."""
    if parameter.param_type_name == "argument":
        name = parameter.name.upper()
    else:
        name = ", ".join(sorted([*parameter.opts, *parameter.secondary_opts], key=len))
        if metavar := parameter.metavar:
            name += f" {_(metavar)}"
    remarks = "; ".join(filter(None, _remarks(parameter)))
    return name, " ".join(filter(None, (_said(parameter.help), f"[{remarks}]" if remarks else "")))


def _remarks(parameter: Any) -> Iterator[str]:
    default = parameter.default
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)  # older typers have no such names
    if isinstance(parameter.show_default, str):
        yield _("default: {value}").format(value=_said(parameter.show_default))
    elif default is not None and default is not False and default != "" and parameter.show_default:
        yield _("default: {value}").format(value=default)
    if least is not None and most is not None:
        yield _("{least:g} to {most:g}").format(least=least, most=most)
    elif least is not None:
        yield _("at least {least:g}").format(least=least)
    if getattr(parameter, "multiple", False):
        yield _("may be repeated")
    if parameter.required:
        yield _("required")


def _two_columns(entries: Sequence[tuple[str, str]], width: int) -> Iterable[str]:
    """Names to the left, texts to the right; a name that is too long for that has its own line."""
    left = min(max(cell_len(name) for name, _text in entries) + 4, 2 * width // 5)
    for name, text in entries:
        lines = wrapped(text, width, indent=left)
        head = "  " + name
        if cell_len(head) + 2 <= left and lines:
            lines[0] = head + " " * (left - cell_len(head)) + lines[0][left:]
        else:
            lines.insert(0, head)
        yield from lines


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """`text` in lines of at most `width` columns, `indent` of them empty, where wide characters take two."""
    lines = [""]
    for part in _PIECE.findall(text):
        if cell_len(lines[-1] + part.rstrip()) > width - indent and lines[-1]:
            lines.append("")
        lines[-1] += " " if part.isspace() and lines[-1] else part.strip()
    return [" " * indent + line.rstrip() for line in lines]


def _said(text: str | None) -> str:
    text = cleandoc(text or "")
    return _(text) if text else ""


@contextmanager
def _usage_errors_explained() -> Iterator[None]:
    """What typer finds wrong with a command line goes to stderr in the language in use, and ends the program with 2."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = usage_error(error.format_message())
        ctx = getattr(error, "ctx", None)
        if ctx is not None and not message.startswith(_usage(ctx.command, ctx)):  # then it is the help: no arguments
            hint = _("Help: {command}").format(command=f"{ctx.command_path} {ctx.help_option_names[-1]}")
            message = "\n".join([_usage(ctx.command, ctx), hint, message])
        typer.echo(message, err=True)
        raise typer.Exit(2) from None


def usage_error(message: str) -> str:
    """What typer says of a wrong command line, in the language in use."""
    for template in USAGE_ERRORS:
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.*)", re.escape(template))
        if found := re.fullmatch(pattern, message, re.DOTALL):
            values = found.groupdict()
            if "reason" in values:
                values["reason"] = usage_error(values["reason"])
            return _(template).format(**values)
    return message
