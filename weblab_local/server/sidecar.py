"""A server as another program's helper process: it says where it is, and is gone when its parent is."""

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import psutil

EXIT_SECONDS = 5.0
"""After so long without an orderly end the process ends as it is: nothing of it is on disk."""


def announce(port: int, token: str, model: str) -> None:
    """Print the one line that the parent waits for."""
    print(json.dumps({"port": port, "token": token, "pid": os.getpid(), "model": model}), flush=True)


class ParentWatch:
    """Ends the process when standard input closes or the parent is gone, whichever is first.

    Standard input may stay open in a process that inherited it, and a parent may be killed: both are watched, a parent
    only where that is allowed.
    """

    def __init__(self) -> None:
        self._end: Callable[[], None] | None = None
        self._parent = os.getppid()

    def start(self) -> None:
        """Watch from now on."""
        for watch in (self._watch_stdin, self._watch_parent):
            threading.Thread(target=watch, name="weblab-local sidecar", daemon=True).start()

    def end_by(self, end: Callable[[], None]) -> None:
        """How to end in order; before this is called the process just ends."""
        self._end = end

    def _watch_stdin(self) -> None:
        with suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        self._gone()

    def _watch_parent(self) -> None:
        if not self._parent:  # it is outside of this container
            return
        try:
            psutil.Process(self._parent).wait()
        except psutil.NoSuchProcess:  # it is gone already: Windows gives the children of the dead no other parent
            pass
        except psutil.Error:  # Windows lets nobody wait for an administrator's process
            return
        self._gone()

    def _gone(self) -> None:
        if self._end is None:
            os._exit(0)
        self._end()
        end_at_the_latest()


def end_at_the_latest() -> None:
    """End the process in EXIT_SECONDS if it has not ended in order by then."""
    timer = threading.Timer(EXIT_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
