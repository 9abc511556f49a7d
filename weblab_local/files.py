"""Files that are whole or not there, and files that are nobody else's business.

What is written whole has the name `.partial` until it is flushed to the disk and renamed. What is private (texts that
were typed, answers) can be read by this user alone, from its first byte on; on Windows a user's folders are so anyway.
"""

import hashlib
import json
import os
import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

OPEN_ELSEWHERE = (5, 32)
"""Windows' ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION: what a rename gives where another program has the file
open, a virus scanner or a search index too, which look at whatever was just written."""

PAUSES = (0.01, 0.05, 0.2, 0.7)
"""Seconds between tries to rename a file that is open elsewhere."""

_NO_NAME = re.compile(
    r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|(com|lpt)[0-9¹²³]|con(in|out)\$) *(\.|$)', re.IGNORECASE
)
"""In what Windows takes for something else than a file's name: a device, a stream of another file."""
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Permissions of what only its owner may read."""


@contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give the path to write to; when the context ends, what lies there is on the disk and has the name `path`.

    Where the context ends by an exception, `path` is left as it was and nothing else stays.
    """
    partial = partial_path(path)
    try:
        if private:
            _create_private(partial)
        yield partial
        sync(partial)
        rename(partial, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError, ValueError):  # ValueError: a name that no file can have
            partial.unlink()


@contextmanager
def private_scratch(path: Path) -> Iterator[Path]:
    """Give `path` as an empty file that only this user may read, and remove it when the context ends."""
    try:
        _create_private(path)
        yield path
    finally:
        with suppress(OSError, ValueError):  # ValueError: a name that no file can have
            path.unlink()


def _create_private(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))


def windows_refuses(name: str) -> bool:
    """Return whether `name`, without its folder, can be no file's on Windows."""
    return _NO_NAME.search(name) is not None


def rename(source: Path, target: Path) -> None:
    """Give the file at `source` the name `target`, in place of what has it. Raises OSError.

    Where Windows says that another program has one of them open, this waits a second for it at most.
    """
    for pause in PAUSES:
        try:
            source.replace(target)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in OPEN_ELSEWHERE:
                raise
            time.sleep(pause)
        else:
            return
    source.replace(target)


def let_go(error: BaseException | None) -> None:
    """Unmap what the frames of an error still hold of files: Windows neither deletes nor renames one that is mapped."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def private_opener(path: str, flags: int) -> int:
    """Open a private file, for the `opener` of `open`; one that others could read until now is made private."""
    descriptor = os.open(path, flags, PRIVATE_FILE)
    if os.name == "posix":
        with suppress(OSError):  # a file system without permissions, or another user's file
            os.fchmod(descriptor, PRIVATE_FILE)
    return descriptor


def private_folder(folder: Path) -> None:
    """Make a private folder; one that is there is made private. Raises OSError where it cannot be made."""
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    with suppress(OSError):
        folder.chmod(PRIVATE_FOLDER)


def allocated(path: Path) -> int:
    """Bytes of disk that the file occupies, fewer than its size where it has holes."""
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512) if hasattr(status, "st_blocks") else status.st_size


def partial_path(path: Path) -> Path:
    """Return the name of `path` while it is being written."""
    return path.with_name(path.name + ".partial")


def sync(path: Path) -> None:
    """Return when the content of the file is on the disk. Raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system can (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, {} where there is none or the file is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
