"""One app for each user: who comes second finds the first, and its page is opened instead of another server.

The first holds a lock on a file in the data directory, for as long as it lives however it ends, and writes there where
it listens and its key. Only its user can read that.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from weblab_local.errors import WeblabError
from weblab_local.files import read_json
from weblab_local.i18n import _

STARTING_SECONDS = 30.0
"""How long another start is waited for: until it listens, or until it has ended."""

_ASK_AGAIN = 0.05
_REQUEST_SECONDS = 5.0
_FAR = 1 << 30
"""On Windows a locked byte cannot be read by others: it is one behind the end of the text."""

HOST = "127.0.0.1"
TICKET_PATH = "/v1/app/ticket"


@dataclass(frozen=True)
class Listening:
    """Where an app listens on 127.0.0.1, and its key."""

    port: int
    key: str

    def address(self, secret: str) -> str:
        """The page's address, with `secret` ("key=..." or "ticket=...") where no server and no proxy sees it."""
        return f"http://{HOST}:{self.port}/#{secret}"

    def new_ticket(self) -> str:
        """Have the app that listens there issue a ticket. Raises OSError where it does not answer."""
        connection = HTTPConnection(HOST, self.port, timeout=_REQUEST_SECONDS)
        try:
            connection.request("POST", TICKET_PATH, headers={"Authorization": f"Bearer {self.key}"})
            response = connection.getresponse()
            return str(json.loads(response.read())["ticket"])
        except (HTTPException, ValueError, LookupError, TypeError) as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()


class Instance:
    """This process is the one app of its user."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, listening: Listening) -> None:
        """Tell those who come later."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, json.dumps(asdict(listening)).encode())


@contextmanager
def first_or_running(path: Path) -> Iterator[Instance | tuple[Listening, str]]:
    """Be this user's app until the context ends; or give where the one that runs listens, and a ticket for its page.

    `path` is the file that is locked. Raises WeblabError where another start neither listens nor ends in time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while not _lock(descriptor):
            if (found := _running(path)) is not None:
                yield found
                return
            if time.monotonic() > deadline:
                raise WeblabError(
                    _("weblab-local app runs already, but does not answer."),
                    _("End it, or remove {path}.").format(path=path),
                )
            time.sleep(_ASK_AGAIN)
        if os.name == "posix":
            os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)  # the one before may have been killed
        try:
            yield Instance(descriptor)
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _running(path: Path) -> tuple[Listening, str] | None:
    match read_json(path):
        case {"port": int(port), "key": str(key)}:
            with suppress(OSError):
                listening = Listening(port, key)
                return listening, listening.new_ticket()
    return None


def _lock(descriptor: int) -> bool:
    """Whether this process has the lock now, which it keeps until the file is closed."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
