"""`weblab-local chat`: the conversation at a terminal. The commands are in `chat_commands`."""

import sys

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from weblab_local.chat import ChatSession, ReplyStream
from weblab_local.cli.chat_commands import COMMANDS, Screen, run_command
from weblab_local.cli.session import cancelled_by_ctrl_c, licence_line, reading_progress
from weblab_local.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.model_store import data_dir
from weblab_local.sampling import SamplingParams

PROMPT = "> "


def run(engine: Engine, params: SamplingParams, system: str | None) -> None:
    """Talk until Ctrl-D or /exit. Ctrl-C stops an answer and keeps the conversation."""
    screen = Screen(engine, ChatSession(engine, system, params), show_reply)
    _greet(engine)
    for line in _lines():
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not run_command(screen, line):
                    return
            else:
                show_reply(screen.chat.stream(line, on_progress=reading_progress))
        except WeblabError as error:
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _greet(engine: Engine) -> None:
    for line in engine.description():
        print(line, file=sys.stderr)
    print(licence_line(engine), file=sys.stderr)
    if not engine.has_template:
        print(_("This is a base model: it continues text and was not trained to follow instructions."), file=sys.stderr)
    print(_("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."), file=sys.stderr)


def show_reply(stream: ReplyStream) -> None:
    """Print an answer as it comes; Ctrl-C ends it, and what there is of it stays."""
    if stream.dropped:
        note = _("(The {n} oldest turns no longer fit the context and were left out.)")
        print(note.format(n=len(stream.dropped)), file=sys.stderr)
    try:
        with cancelled_by_ctrl_c(stream.cancel):
            for chunk in stream:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        if stream.reply.finish_reason == "cancelled":
            print(_(" [stopped]"), end="", file=sys.stderr, flush=True)
    except BaseException:
        stream.cancel()
        print(flush=True)
        raise
    print(flush=True)


def _lines() -> "LineReader":
    return LineReader()


class LineReader:
    """What the user types, one input at a time: edited at a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._session = _prompt_session() if sys.stdin.isatty() else None

    def __iter__(self) -> "LineReader":
        return self

    def __next__(self) -> str:
        if self._session is None:
            line = sys.stdin.readline()
            if not line:
                raise StopIteration
            return line.rstrip("\n")
        while True:
            try:
                return self._session.prompt().rstrip("\n")
            except KeyboardInterrupt:
                print(_("Ctrl-D or /exit leaves."), file=sys.stderr)
            except EOFError:
                raise StopIteration from None


def _prompt_session() -> PromptSession[str]:
    return PromptSession(
        PROMPT,
        history=_history(),
        completer=_completer(),
        key_bindings=_key_bindings(),
        multiline=True,
        prompt_continuation="  ",
        complete_while_typing=False,
    )


def _history() -> History:
    path = data_dir() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError:  # a home that is read-only: what was typed is forgotten at the end
        return InMemoryHistory()
    return FileHistory(str(path))


def _completer() -> Completer:
    return WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)


def _key_bindings() -> KeyBindings:
    """Enter sends, unless the line ends in a backslash; Alt-Enter begins a new line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
