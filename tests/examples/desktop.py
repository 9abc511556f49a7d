"""Windows on a display of their own: Xvfb, keys and clicks by xdotool, and Tk's `send` to read what a window shows."""

import ctypes
import importlib.util
import os
import secrets
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

APP = "weblab-local"
"""The name that the example's window has among Tk's interpreters."""

PATIENCE = 60
"""Seconds after which a window that does not answer is ended, and its test fails."""


def missing() -> str:
    """What windows need and this machine does not have, for a skip's reason; "" when all is there."""
    programs = [program for program in ("Xvfb", "xdotool") if shutil.which(program) is None]
    return ", ".join([*programs, *(["tkinter"] if importlib.util.find_spec("_tkinter") is None else [])])


@contextmanager
def display(folder: Path, size: tuple[int, int] = (800, 600)) -> Iterator[Mapping[str, str]]:
    """A display of `size` pixels that nobody sees, and the environment to reach it.

    Access is by a key, not by host name: Tk's `send` wants it so.
    """
    key_file = folder / "Xauthority"
    key_file.write_bytes(_key_for_any_display())
    read, write = os.pipe()
    options = ("-screen", "0", f"{size[0]}x{size[1]}x24", "-nolisten", "tcp", "-noreset")
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-auth", str(key_file), *options],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    ) as server:
        os.close(write)
        with os.fdopen(read) as numbers:
            number = numbers.readline().strip()
        try:
            yield {"DISPLAY": f":{number}", "XAUTHORITY": str(key_file)}
        finally:
            server.terminate()


def _key_for_any_display() -> bytes:
    """An Xauthority entry of family FamilyWild (libXau's Xauth.h): lengths and strings, big-endian."""
    fields = (b"", b"", b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16))
    return struct.pack(">H", 0xFFFF) + b"".join(struct.pack(">H", len(field)) + field for field in fields)


class App:
    """The example's window in a process of its own. A context manager: at its end the process is ended."""

    def __init__(
        self, command: Sequence[str | Path], screen: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        """Start `command` on `screen` when entered; besides that it gets `environment` and nothing else."""
        self._command = list(map(str, command))
        self._screen = screen
        self._variables = {**environment, **screen}
        self._cleanup = ExitStack()

    def __enter__(self) -> "App":
        import tkinter

        with self._cleanup as cleanup:
            with _environment(self._screen):
                self._tk: Any = tkinter.Tk(className="tester")
            cleanup.callback(self._tk.destroy)
            self._tk.withdraw()
            self.process = subprocess.Popen(
                self._command,
                env=self._variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
            cleanup.enter_context(self.process)
            cleanup.callback(self.process.kill)
            watchdog = threading.Timer(PATIENCE, self.process.kill)
            watchdog.start()
            cleanup.callback(watchdog.cancel)
            self._wait(lambda: APP in self._tk.winfo_interps())
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        if error is not None:
            error.add_note(f"What the app wrote: {self.output()}")
        self._cleanup.close()

    def release(self) -> None:
        """Close the app's stdin."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def output(self) -> str:
        """What the app wrote to stdout and stderr, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def tcl(self, script: str) -> str:
        """What `script` gives in the app's interpreter: its event loop evaluates it, between two other events."""
        return str(self._tk.tk.call("send", APP, script))

    def wait_for(self, script: str, expected: str) -> None:
        """Wait until `script` gives `expected` there, line breaks at both ends aside."""
        self._wait(lambda: self.tcl(script).strip("\n") == expected)

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, f"the app has ended with {self.process.returncode}"
            self._tk.tk.call("after", 10)

    def wait_until_free(self) -> None:
        """Wait until an instruction can be sent: the model is loaded, and the answer that was running is complete."""
        self.wait_for(".send instate !disabled", "1")

    @property
    def transcript(self) -> str:
        """The text above the field."""
        return self.tcl("[lindex [info commands .*.transcript] 0] get 1.0 end").strip("\n")

    def click(self, widget: str) -> None:
        """Click into the middle of a widget, and wait until the app has seen it."""
        self.tcl("set clicked {}; bind . <ButtonRelease-1> {set clicked %W}")
        x, y = (
            self.tcl(f"expr {{[winfo root{axis} {widget}] + [winfo {size} {widget}] / 2}}")
            for axis, size in (("x", "width"), ("y", "height"))
        )
        self.xdotool("mousemove", x, y, "click", "1")
        self.wait_for("set clicked", widget)

    def press(self, *keys: str) -> None:
        """Press keys by X's names, like ctrl+v."""
        self.xdotool("key", *keys)

    def paste(self, text: str) -> None:
        """Put `text` into the clipboard and press Ctrl-V; this process serves it to the app as another window would."""
        self._tk.clipboard_clear()
        self._tk.clipboard_append(text)
        self._tk.update()
        self.press("ctrl+v")
        while self.tcl(".field get 1.0 end").strip("\n") != text:
            self._tk.update()

    def ask(self, text: str) -> None:
        """Write `text` into the field as a person would, and send it."""
        self.click(".field")
        self.paste(text)
        self.enter()

    def enter(self) -> None:
        """Press Enter, and wait until what is in the field has been sent."""
        self.press("Return")
        self.wait_for(".field get 1.0 end", "")

    def close(self) -> None:
        """Ask the window to close, as a window manager does when its x is clicked."""
        window = self.xdotool("search", "--onlyvisible", "--name", f"^{APP}$").split()[0]
        with _environment(self._screen):
            _send_delete_window(int(window))

    def wait_until_gone(self) -> None:
        """Wait until the window is gone, whatever its process does."""
        while APP in self._tk.winfo_interps():
            self._tk.tk.call("after", 10)

    def exit_code(self) -> int:
        """Wait for the process's end."""
        return self.process.wait(PATIENCE)

    def xdotool(self, *arguments: str) -> str:
        """What `xdotool` prints."""
        done = subprocess.run(
            ["xdotool", *arguments], env=os.environ | self._screen, check=True, stdout=subprocess.PIPE, encoding="utf-8"
        )
        return done.stdout


class _ClientMessage(ctypes.Structure):
    """`XClientMessageEvent` of X11/Xlib.h, padded to the size of `XEvent`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message_type", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
        ("padding", ctypes.c_long * 12),
    )


def _send_delete_window(window: int) -> None:
    """Send WM_DELETE_WINDOW (ICCCM 4.2.8.1)."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XInternAtom.restype = ctypes.c_ulong
    server = ctypes.c_void_p(x11.XOpenDisplay(None))
    protocols, delete = (x11.XInternAtom(server, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
    message = _ClientMessage(type=33, window=window, message_type=protocols, format=32)
    message.data[0] = delete
    x11.XSendEvent(server, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(message))
    x11.XCloseDisplay(server)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
