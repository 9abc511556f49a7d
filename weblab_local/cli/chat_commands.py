"""The commands inside a chat: /help, /new and so on."""

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

from weblab_local.chat.saved import load_session, save_session, sessions_folder
from weblab_local.chat.session import ChatSession, ReplyStream
from weblab_local.cli.session import reading_progress
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Stats
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.files import windows_refuses
from weblab_local.home import with_home
from weblab_local.i18n import _, n_
from weblab_local.models.attribution import attribution


@dataclass
class Screen:
    """The conversation on the screen. `show` prints an answer as it comes."""

    engine: Engine
    chat: ChatSession
    show: Callable[[ReplyStream], None]


_SLASHES = ("/", "\N{FULLWIDTH SOLIDUS}")

_TAKES_LINES = "system"
"""The command whose argument may have several lines; else a text of several lines is a message."""

_SIMILAR = 0.75
"""Twice the number of letters that two names share in the same order, as a part of all their letters (difflib)."""

Command = Callable[[Screen, str], bool | None]
"""Gets the screen and what follows the command's name; False ends the chat."""


def _help(_screen: Screen, _argument: str) -> None:
    for name, (_command, usage, text) in COMMANDS.items():
        print(f"  /{name} {usage}".ljust(24) + _(text))
    print(_("  Alt-Enter, or a backslash at the end of a line, begins a new line."))


def _new(screen: Screen, _argument: str) -> None:
    screen.chat.reset()
    print(_("A new conversation."))


def _regen(screen: Screen, _argument: str) -> None:
    screen.show(screen.chat.regenerate(on_progress=reading_progress))


def _undo(screen: Screen, _argument: str) -> None:
    print(_("Taken back: {text}").format(text=screen.chat.undo()))


def _system(screen: Screen, argument: str) -> None:
    if argument:
        screen.chat.system = None if argument == "-" else argument
    print(_("System message: {text}").format(text=screen.chat.system or _("none")))


SETTABLE = {f.name: f for f in fields(SamplingParams) if f.name not in ("logit_bias", "json_schema", "grammar", "stop")}


def _set(screen: Screen, argument: str) -> None:
    name, _space, value = unicodedata.normalize("NFKC", argument).partition(" ")
    name = name.replace("-", "_")
    if name and name not in SETTABLE:
        raise WeblabError(_("There is no setting {name}.").format(name=name), ", ".join(SETTABLE))
    if name and value:
        whole = name in ("top_k", "seed", "max_tokens")
        try:
            number = None if value == "none" and name == "seed" else (int(value) if whole else float(value))
        except ValueError:
            raise WeblabError(_("{value!r} is no number.").format(value=value)) from None
        screen.chat.params = replace(screen.chat.params, **{name: number})  # type: ignore[arg-type]
    for setting in [name] if name else SETTABLE:
        print(f"  {setting} = {getattr(screen.chat.params, setting)}")


def _stats(screen: Screen, _argument: str) -> None:
    used, context = screen.chat.tokens_used, screen.engine.longest_sequence
    print(
        _("{used} of {context} tokens used, in {n} turns.").format(used=used, context=context, n=len(screen.chat.turns))
    )
    stats = screen.chat.last_stats
    if stats is not None:
        print(describe(stats))


def describe(stats: Stats) -> str:
    """Counts and speeds of an answer, in a line."""
    return _(
        "Last answer: {prompt} tokens read ({cached} from the cache) at {prompt_speed:.1f}/s, first token after "
        "{first:.2f} s, {completion} tokens written at {speed:.1f}/s."
    ).format(
        prompt=stats.prompt_tokens,
        cached=stats.cached_tokens,
        prompt_speed=stats.prompt_speed,
        first=stats.time_to_first_token,
        completion=stats.completion_tokens,
        speed=stats.generation_speed,
    )


def session_path(name: str) -> Path:
    """Where a conversation of that name is kept; a name with a slash or a suffix is a path.

    Raises WeblabError for a name that no file can have on Windows.
    """
    path = with_home(name)
    if sys.platform == "win32" and windows_refuses(path.name):
        raise WeblabError(
            _("No file can be called {name!r} on Windows.").format(name=path.name),
            _('Choose a name without < > : " | ? * and other than CON, NUL and the like.'),
        )
    if path.suffix or len(path.parts) > 1:
        return path
    return sessions_folder() / f"{name}.weblab"


def _save(screen: Screen, argument: str) -> None:
    path = session_path(argument or "last")
    save_session(screen.chat, path, with_state=True)
    print(_("Saved to {path}.").format(path=path))


def _load(screen: Screen, argument: str) -> None:
    path = session_path(argument or "last")
    screen.chat = load_session(screen.engine, path, screen.chat.params).chat
    print(_("{n} turns from {path}.").format(n=len(screen.chat.turns), path=path))


def _licence(screen: Screen, _argument: str) -> None:
    print(attribution(screen.engine.metadata, screen.engine.path.stem))


def _exit(_screen: Screen, _argument: str) -> bool:
    return False


COMMANDS: dict[str, tuple[Command, str, str]] = {
    "help": (_help, "", n_("this list")),
    "new": (_new, "", n_("begin a new conversation")),
    "regen": (_regen, "", n_("answer the last instruction once more")),
    "undo": (_undo, "", n_("take the last turn back")),
    "system": (_system, "[TEXT|-]", n_("show, set or remove the system message")),
    "set": (_set, "[NAME [VALUE]]", n_("show or change settings, such as temperature")),
    "stats": (_stats, "", n_("tokens and speeds")),
    "save": (_save, "[NAME]", n_("save the conversation")),
    "load": (_load, "[NAME]", n_("load a conversation")),
    "licence": (_licence, "", n_("licence and authors of the model")),
    "exit": (_exit, "", n_("leave")),
}


class UnclearCommand(WeblabError):
    """A line is no command, but may be meant as one: it should neither be run nor sent before its writer is asked."""


def is_command(line: str) -> bool:
    """Whether a line is one of the commands; else it is a message, though it may begin with a slash.

    Raises UnclearCommand for a word alone that is none of them, for one that is spelled much like one, and for a text
    behind a command that takes none.
    """
    if not line.startswith(_SLASHES):
        return False
    name, argument = _parts(line)
    if "\n" in line and name != _TAKES_LINES:
        return False
    if name in COMMANDS:
        _command, usage, _text = COMMANDS[name]
        if argument and not usage:
            raise UnclearCommand(_("/{name} takes nothing behind it.").format(name=name), _("/help lists them."))
        return True
    similar = get_close_matches(name, COMMANDS, n=1, cutoff=_SIMILAR)
    if similar:
        message = _("There is no command /{name}. Did you mean /{other}?").format(name=name, other=similar[0])
        raise UnclearCommand(message, _("/help lists them."))
    if not argument and ((name.isascii() and name.isalpha()) or not name):
        raise UnclearCommand(_("There is no command /{name}.").format(name=name), _("/help lists them."))
    return False


def run_command(screen: Screen, line: str) -> bool:
    """Run a line that is a command; False when the chat is to end. Raises WeblabError where that cannot be done."""
    name, argument = _parts(line)
    return COMMANDS[name][0](screen, argument) is not False


def _parts(line: str) -> tuple[str, str]:
    """What stands behind the slash: a command's name, however wide it was typed, and the rest."""
    name, *rest = line[1:].strip().split(maxsplit=1) or [""]
    return unicodedata.normalize("NFKC", name).lower(), "".join(rest)
