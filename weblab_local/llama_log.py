"""llama.cpp's log goes to Python's logging, under "weblab_local.llama_cpp"; silent unless the caller asks for it."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

logger = logging.getLogger("weblab_local.llama_cpp")
logger.addHandler(logging.NullHandler())

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
"""ggml_log_level to Python's: INFO is the flood that llama.cpp writes while loading; 5 continues the line before."""

_collectors: list[list[str]] = []
_last_level = logging.DEBUG


def _on_log(level: int, text: bytes, _: Any) -> None:
    global _last_level
    if level in _LEVELS:
        _last_level = _LEVELS[level]
    message = text.decode("utf-8", errors="replace").rstrip("\n")
    if not message.strip(". "):
        return
    if _last_level >= logging.ERROR:
        for lines in _collectors:
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
    route()
    lines: list[str] = []
    _collectors.append(lines)
    try:
        yield lines
    finally:
        _collectors.remove(lines)
