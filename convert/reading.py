"""A shard is read from the disk once: by one thread that hashes it, with those who want its weights close behind.

The weights themselves are taken from the memory-mapped file. As the reader is ahead, they are in the page cache by
then; as it is never far ahead, they still are, also where the shard is larger than the memory.
"""

import hashlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

WINDOW = 512 << 20
"""Bytes that the reader may be ahead of those who use what it has read."""

_BUFFER = 4 << 20


class ShardReader:
    """Reads the file at `path` in a thread of its own, from beginning to end, while the context lasts.

    Positions are bytes from the file's start. They may be inexact by a little: what has not been read yet when it is
    used is read by whoever uses it, and comes to the reader from the page cache.
    """

    def __init__(self, path: Path, window: int = WINDOW) -> None:
        self._path = path
        self._window = window
        self._digest = hashlib.sha256()
        self._changed = threading.Condition()
        self._read = 0
        self._wanted = 0
        self._used = 0
        self._ended = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def wait_for(self, position: int) -> None:
        """Return when everything before `position` has been read, or the file has ended. Raises OSError."""
        with self._changed:
            self._wanted = max(self._wanted, position)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._read >= position or self._ended)
            if self._error is not None:
                raise self._error

    def used(self, position: int) -> None:
        """Say that nothing before `position` is wanted any more."""
        with self._changed:
            self._used = max(self._used, position)
            self._changed.notify_all()

    def sha256(self) -> str:
        """SHA-256 of the whole file, in hex, when all of it has been read. Raises OSError."""
        self.wait_for(self._path.stat().st_size + 1)
        return self._digest.hexdigest()

    def _run(self) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        try:
            with self._path.open("rb", buffering=0) as file:
                while self._may_go_on() and (n_bytes := file.readinto(buffer)):
                    self._digest.update(buffer[:n_bytes])
                    with self._changed:
                        self._read += n_bytes
                        self._changed.notify_all()
        except OSError as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _may_go_on(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._read < max(self._used + self._window, self._wanted))
            return not self._ended
