"""llama.cpp's log goes to Python's logging, under "weblab_local.llama_cpp"; silent unless the caller asks for it."""

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

logger = logging.getLogger("weblab_local.llama_cpp")
logger.addHandler(logging.NullHandler())

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
"""ggml_log_level to Python's: INFO is the flood that llama.cpp writes while loading; 5 continues the line before."""

_collectors: list[tuple[int | None, int, list[str]]] = []
"""Thread to listen to (None: all), lowest level, and where the lines go."""

_last_level = logging.DEBUG


def _on_log(level: int, text: bytes, _: Any) -> None:
    global _last_level
    if level in _LEVELS:
        _last_level = _LEVELS[level]
    message = text.decode("utf-8", errors="replace").rstrip("\n")
    if not message.strip(". "):
        return
    for thread, lowest_level, lines in _collectors:
        if _last_level >= lowest_level and thread in (None, threading.get_ident()):
            lines.append(message)
    logger.log(_last_level, "%s", message)


@cache
def route() -> Any:
    """Send llama.cpp's log to Python's, from now on. Returns the callback, which has to live as long as the process."""
    from llama_cpp import llama_cpp

    callback = llama_cpp.llama_log_callback(_on_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


@contextmanager
def collect_errors() -> Iterator[list[str]]:
    """A list of the error lines that llama.cpp logs inside the context, for an exception's message."""
    with _collect(None, logging.ERROR) as lines:
        yield lines


@contextmanager
def collect_lines() -> Iterator[list[str]]:
    """A list of all lines that llama.cpp logs on this thread inside the context."""
    with _collect(threading.get_ident(), logging.DEBUG) as lines:
        yield lines


@contextmanager
def _collect(thread: int | None, lowest_level: int) -> Iterator[list[str]]:
    route()
    collector: tuple[int | None, int, list[str]] = (thread, lowest_level, [])
    _collectors.append(collector)
    try:
        yield collector[2]
    finally:
        # By identity: two collectors with the same lines are equal.
        _collectors[:] = [other for other in _collectors if other is not collector]
