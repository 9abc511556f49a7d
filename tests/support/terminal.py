"""The program at a terminal of 80 columns, as a person sees it: keys go in, the screen is read."""

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pexpect
import pyte
import pytest

COLUMNS, ROWS = 80, 60
KEYS = {
    "enter": "\r",
    "alt-enter": "\x1b\r",
    "tab": "\t",
    "backspace": "\x7f",
    "up": "\x1b[A",
    "left": "\x1b[D",
    "right": "\x1b[C",
    "ctrl-c": "\x03",
    "ctrl-d": "\x04",
}

_LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it
os.execv(sys.executable, [sys.executable, "-m", "weblab_local", *sys.argv[1:]])
"""


def launch(*arguments: str) -> list[str]:
    """The command line of `weblab-local` with these arguments, in which Ctrl-C works."""
    if os.name != "posix":  # where exec begins another process
        return [sys.executable, "-m", "weblab_local", *arguments]
    return [sys.executable, "-c", _LAUNCH, *arguments]


class _Screen(pyte.Screen):
    """A screen that answers when it is asked where its cursor is."""

    def __init__(self, program: Any) -> None:
        super().__init__(COLUMNS, ROWS)
        self._program = program

    def write_process_input(self, data: str) -> None:
        self._program.send(data)


class Terminal:
    """`weblab-local` with these arguments, running at a terminal. A context manager: at its end it is ended."""

    def __init__(self, *arguments: str, timeout: float = 20) -> None:
        if os.name != "posix":
            pytest.skip("needs a terminal as POSIX has them")
        command, *rest = launch(*arguments)
        self._program: Any = pexpect.spawn(
            command,
            rest,
            env=os.environ | {"TERM": "xterm-256color", "LANG": "C.UTF-8"},
            dimensions=(ROWS, COLUMNS),
            encoding="utf-8",
            timeout=timeout,
        )
        self._program.delaybeforesend = None
        self._screen = _Screen(self._program)
        self._stream = pyte.Stream(self._screen)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, pexpect.ExceptionPexpect):
            error.add_note(f"The screen:\n{self.screen}")
        self._program.close(force=True)

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without what is empty at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n").split("\n")

    @property
    def screen(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines)

    def type(self, text: str) -> None:
        """Type characters."""
        self._program.send(text)

    def press(self, *keys: str) -> None:
        """Press keys by their names in KEYS."""
        self._program.send("".join(KEYS[key] for key in keys))

    def paste(self, text: str) -> None:
        """Paste as terminals do it, in brackets, with carriage returns for line breaks."""
        self._program.send("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def enter(self, text: str) -> None:
        """Type a line, see it on the screen, and press Enter."""
        self.type(text)
        self.wait_for(text)
        self.press("enter")

    def wait_for(self, text: str) -> None:
        """Wait until `text` is on the screen; where it wraps, line breaks and blanks do not count."""
        wanted = _without_blanks(text)
        self.wait_until(lambda: wanted in _without_blanks(self.screen))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Read the screen until `condition` holds."""
        while not condition():
            self._receive()

    def wait_for_prompt(self) -> None:
        """Wait until the program asks for the next input: its prompt stands alone on the last line."""
        while self.lines[-1] != ">" or self._screen.cursor.x != 2:
            self._receive()

    def clear(self) -> None:
        """Empty the screen, as Ctrl-L does, so that what is awaited next is not what was there before."""
        self._program.send("\x0c")
        while len(self.lines) > 1 or self.lines[-1] != ">":
            self._receive()

    def ask(self, text: str) -> list[str]:
        """Enter a line; what the program prints until it asks again."""
        self.clear()
        self.enter(text)
        self.wait_for_prompt()
        return self.lines[self._input_lines(text) : -1]

    def _input_lines(self, text: str) -> int:
        return next(n for n in range(1, ROWS) if _without_blanks(text) in _without_blanks("".join(self.lines[:n])))

    def exit_code(self) -> int:
        """Wait for the program's end."""
        while True:
            try:
                self._receive()
            except pexpect.EOF:
                break
        self._program.wait()
        return int(self._program.exitstatus)

    def _receive(self) -> None:
        self._stream.feed(self._program.read_nonblocking(65536, self._program.timeout))


def _without_blanks(text: str) -> str:
    return "".join(text.split())
