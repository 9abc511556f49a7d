"""The conversation of `weblab-local chat`, at a terminal or through a pipe."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from weblab_local.chat.session import ChatSession, ReplyStream
from weblab_local.cli.chat_commands import COMMANDS, Screen, UnclearCommand, is_command, run_command
from weblab_local.cli.session import cancelled_by_ctrl_c, licence_line, reading_progress
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.files import private_opener
from weblab_local.home import data_dir
from weblab_local.i18n import _
from weblab_local.streams import read_line

PROMPT = "> "


TYPING_PAUSE, THINKING_PAUSE = 0.1, 0.4
"""Seconds after a key until what is typed is read ahead, and until it is taken for all."""


def run(
    engine: Engine, params: SamplingParams, system: str | None, *, history: bool = True, read_ahead: bool = True
) -> None:
    """Talk until Ctrl-D or /exit. Ctrl-C stops an answer and keeps the conversation.

    `history`: what is typed can be recalled in later chats. With `read_ahead` the model reads the conversation and what
    is typed while it is typed.
    """
    screen = Screen(engine, ChatSession(engine, system, params), show_reply)
    _greet(engine)
    lines = LineReader(lambda: screen.chat if read_ahead else None, history=history)
    for line in lines:
        if not line.strip():
            continue
        try:
            if not lines.confirmed and is_command(line):
                if not run_command(screen, line):
                    return
            else:
                show_reply(screen.chat.stream(line, on_progress=reading_progress))
        except UnclearCommand as error:
            print(error, file=sys.stderr)
            lines.ask_about(line)
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


class LineReader:
    """What the user types, one input at a time: edited at a terminal, plain lines elsewhere.

    At a terminal, the conversation that `chat` returns, if any, reads ahead what is being typed.
    """

    def __init__(self, chat: Callable[[], ChatSession | None] = lambda: None, *, history: bool = True) -> None:
        self._session = _prompt_session(_history() if history else InMemoryHistory()) if _can_be_edited() else None
        self._asked_about = ""
        self.confirmed = False
        """Whether the last line is what its user was asked about, sent once more."""
        self._chat = chat
        self._reading: asyncio.Task[None] | None = None
        if self._session is not None:
            self._session.default_buffer.on_text_changed += lambda _buffer: self._typed()

    def ask_about(self, line: str) -> None:
        """Have `line` edited, or sent once more as it is; where nobody can be asked, say that it was not sent."""
        if self._session is None:
            print(_("Not sent: {line}").format(line=line), file=sys.stderr)
        else:
            print(_("Edit it, or press Enter to send it as a message."), file=sys.stderr)
            self._asked_about = line

    def _typed(self) -> None:
        """Read ahead what is typed by now, and nothing any more of what was."""
        chat = self._chat()
        if self._reading is not None:
            self._reading.cancel()
        if chat is not None and self._session is not None and self._session.app.is_running:
            self._reading = self._session.app.create_background_task(_read_ahead(chat, self._session))

    def __iter__(self) -> "LineReader":
        return self

    def __next__(self) -> str:
        if self._session is None:
            line = read_line()
            if not line:
                raise StopIteration
            return line.rstrip("\n")
        asked_about, self._asked_about = self._asked_about, ""
        while True:
            try:
                line = self._session.prompt(default=asked_about, pre_run=self._typed).rstrip("\n")
                self.confirmed = line == asked_about
                return line
            except KeyboardInterrupt:
                asked_about = ""
                print(_("Ctrl-D or /exit leaves."), file=sys.stderr)
            except EOFError:
                raise StopIteration from None


async def _read_ahead(chat: ChatSession, session: PromptSession[str]) -> None:
    """Let the conversation read what is typed; after a pause, as if it were all. A command is not read."""
    await asyncio.sleep(TYPING_PAUSE)
    text = session.default_buffer.text
    if not text.startswith("/"):
        chat.read_ahead(text)
        await asyncio.sleep(THINKING_PAUSE)
        if text:
            chat.read_ahead(text, finished=True)


def _can_be_edited() -> bool:
    """Whether somebody types at a terminal. On Windows prompt_toolkit edits only where stdout is the console too."""
    return sys.stdin.isatty() and (sys.platform != "win32" or sys.stdout.isatty())


def _prompt_session(history: History) -> PromptSession[str]:
    return PromptSession(
        PROMPT,
        history=history,
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
        _make_private(path)
    except OSError:  # a home that is read-only: what was typed is forgotten at the end
        return InMemoryHistory()
    return _PrivateHistory(path)


class _PrivateHistory(FileHistory):
    """What was typed, in a private file, which may be deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def store_string(self, string: str) -> None:
        _make_private(self._path)
        super().store_string(string)


def _make_private(path: Path) -> None:
    with open(path, "ab", opener=private_opener):
        pass


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
