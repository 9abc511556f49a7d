"""Who may read what is on disk."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE, FOLDER = 0o600, 0o700
"""Permissions of what only its owner may read."""


def mode(path: Path) -> int:
    """The permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def everything_open() -> Iterator[None]:
    """Files and folders that are made here are open to everybody, where their maker does not say otherwise."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)
