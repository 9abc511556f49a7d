"""stdin, stdout and stderr, whatever encoding the system gave them: cp932, cp1252, or none because they were closed."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Make the standard streams fit for any text. A command line calls it before it reads or prints anything.

    A pipe on Windows has a character set that lacks characters: these are printed as "?". Its lines end as elsewhere,
    since a shell that takes a path from a pipe keeps a carriage return. A path that is no text stays one where Python
    has prepared for that. What on stdin is no text is kept, to be refused with a reason later.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        errors = "surrogateescape" if _is_utf8() and sys.stdout.errors == "surrogateescape" else "replace"
        sys.stdout.reconfigure(errors=errors, newline=None if sys.stdout.isatty() else "\n")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _open_closed_streams() -> None:
    """Open the null device as stdin, stdout and stderr where they were closed before the program started (`>&-`).

    Python has None for them then, and the next file that is opened would take their number and get llama.cpp's output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def read_all() -> str:
    """Return all of stdin as text, its lines ended by "\\n"."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return sys.stdin.read()
    return _decoded(sys.stdin.buffer.read())


def read_line() -> str:
    """Return the next line of stdin with the "\\n" that ends it, "" at its end."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return sys.stdin.readline()
    return _decoded(sys.stdin.buffer.readline())


def _decoded(data: bytes) -> str:
    """What was piped in, as UTF-8 where it is that, else in the encoding that the system gave stdin.

    `type FILE | ...` on Windows passes on the file's bytes, which are UTF-8 today, while what a program there prints is
    in the system's character set. Japanese in cp932 is hardly ever valid UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode(sys.stdin.encoding, errors="surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON for stdout: with Japanese as it is where stdout is UTF-8, which JSON has to be.

    Elsewhere it is written in ASCII, with escapes, so that nothing of it is lost and every reader takes it.
    """
    return json.dumps(value, ensure_ascii=not _is_utf8(), indent=indent)
