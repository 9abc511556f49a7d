"""Forked children of the process that runs the tests."""

import os
import pickle
import select
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

from tests.support.engines import PATIENCE

T = TypeVar("T")


def in_child(function: Callable[[], T]) -> T:
    """What `function` returns in a forked child. Fails where it raises there, or hangs."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside other threads
        child = os.fork()
    if child == 0:
        try:
            result = pickle.dumps((function(), ""))
        except BaseException:
            result = pickle.dumps((None, traceback.format_exc()))
        os.write(writer, result)
        os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], PATIENCE)
        if not ready:
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reader, "rb") as file:
            answer = file.read()
    finally:
        os.waitpid(child, 0)
    assert ready, "the child hangs"
    assert answer, "the child died"
    value, error = pickle.loads(answer)
    assert not error, error
    returned: T = value
    return returned
