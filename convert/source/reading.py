"""A shard is read from the disk once: by one thread that hashes it, with those who want its weights close behind.

The weights themselves are taken from the memory-mapped file. As the reader is ahead, they are in the page cache by
then; as it is never far ahead, they still are, also where the shard is larger than the memory. float16 is widened here.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

WINDOW = 512 << 20
"""Bytes that the reader may be ahead of those who use what it has read."""

_BUFFER = 4 << 20
_WIDEN = np.float32(2.0**112)

_log = logging.getLogger(__name__)


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
        self._error: BaseException | None = None
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
        """Return when everything before `position` has been read, or the file ended. Raises what ended the reader."""
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
        """SHA-256 of the whole file, in hex, when all of it has been read. Raises what ended the reader."""
        self.wait_for(self._path.stat().st_size + 1)
        return self._digest.hexdigest()

    def _run(self) -> None:
        try:
            buffer = memoryview(bytearray(_BUFFER))
            with self._path.open("rb", buffering=0) as file:
                while self._may_go_on() and (n_bytes := file.readinto(buffer)):
                    self._digest.update(buffer[:n_bytes])
                    with self._changed:
                        self._read += n_bytes
                        self._changed.notify_all()
        except BaseException as error:  # nobody else can see what happens in this thread
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _may_go_on(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._read < max(self._used + self._window, self._wanted))
            return not self._ended


def widen(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return float16 of any shape as float32, exactly; by a kernel where Numba works: NumPy takes far longer."""
    kernel = _widening_kernel()
    if kernel is None:
        return halves.astype(np.float32)
    halves = np.ascontiguousarray(halves)
    wide = np.empty(halves.shape, np.float32)
    kernel(halves.view(np.uint16).reshape(-1), wide.view(np.uint32).reshape(-1), wide.reshape(-1))
    return wide


_Kernel = Callable[[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.float32]], None]


@cache
def _widening_kernel() -> _Kernel | None:
    """Return `_widen`, compiled for this processor; the result is kept on disk and runs without the GIL."""
    try:
        import numba

        kernel: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(_widen)
        kernel(np.zeros(1, np.uint16), np.empty(1, np.uint32), np.empty(1, np.float32))
    except Exception as error:  # whatever keeps Numba from working on this machine, NumPy does the same
        _log.info("float16 to float32: NumPy, the kernel does not work here: %s", error)
        return None
    return kernel  # type: ignore[no-any-return]  # it is called like the function


def _widen(halves: NDArray[np.uint16], bits: NDArray[np.uint32], values: NDArray[np.float32]) -> None:
    """Sign, exponent and fraction moved to their places in float32; 2^112 makes up for the exponents' other zero.

    `bits` and `values` are the same memory.
    """
    for i in range(len(halves)):
        half = np.uint32(halves[i])
        sign, rest = half & np.uint32(0x8000), half & np.uint32(0x7FFF)
        infinite = np.uint32(0x7F800000) if rest >= np.uint32(0x7C00) else np.uint32(0)
        bits[i] = sign << np.uint32(16) | rest << np.uint32(13) | infinite
    for i in range(len(values)):
        values[i] *= _WIDEN
