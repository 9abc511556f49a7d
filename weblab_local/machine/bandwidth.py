"""How fast this machine reads its memory: what generation on the CPU is measured against."""

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from weblab_local.machine.devices import ram

SIZE = 2**30
"""Bytes that are read: several times the last cache of all but a few servers."""

PASSES = 5

_Words = NDArray[np.int64]


def memory_bandwidth(n_threads: int, size: int = SIZE, passes: int = PASSES) -> float:
    """Bytes per second that threads read together, each through its own part of an array; the best pass, as in STREAM.

    `size` is in bytes; a quarter of the available memory at most is used.
    """
    words = np.ones(min(size, ram().available // 4) // 8, dtype=np.int64)  # ones: zeros would all be the same page
    parts = np.array_split(words, n_threads)
    best = 0.0
    with ThreadPoolExecutor(n_threads) as threads:
        for read in _readers():
            for _ in range(passes):
                start = time.perf_counter()
                list(threads.map(read, parts))
                best = max(best, words.nbytes / (time.perf_counter() - start))
    return best


def _readers() -> Sequence[Callable[[_Words], object]]:
    """Loops that read memory once and release the GIL. Which of them is bound by memory depends on the C library."""
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    memchr = library.memchr
    memchr.restype = ctypes.c_void_p
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    return (lambda part: memchr(part.ctypes.data, 0xFF, part.nbytes), lambda part: part.max())
