"""The commands inside a chat: /help, /new and so on."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from weblab_local.attribution import attribution
from weblab_local.chat import ChatSession, ReplyStream
from weblab_local.cli.session import reading_progress
from weblab_local.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.generation import Stats
from weblab_local.i18n import _, n_
from weblab_local.model_store import data_dir
from weblab_local.sampling import SamplingParams
from weblab_local.sessions import load_session, save_session


@dataclass
class Screen:
    """The conversation on the screen. `show` prints an answer as it comes."""

    engine: Engine
    chat: ChatSession
    show: Callable[[ReplyStream], None]


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
    name, _space, value = argument.partition(" ")
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
    """Where a conversation of that name is kept; a name with a slash or a suffix is a path."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (this one never raises)
    if path.suffix or len(path.parts) > 1:
        return path
    return data_dir() / "sessions" / f"{name}.weblab"


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


def run_command(screen: Screen, line: str) -> bool:
    """Run a line that begins with a slash; False when the chat is to end. Raises WeblabError for unknown commands."""
    name, _space, argument = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise WeblabError(_("There is no command /{name}.").format(name=name), _("/help lists them."))
    return COMMANDS[name][0](screen, argument.strip()) is not False
