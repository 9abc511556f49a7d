"""What Windows refuses and Linux allows: a file that is mapped into memory can be neither deleted nor replaced."""

import errno
import os
from pathlib import Path
from typing import Any


def refuse_for_mapped_files() -> None:
    """From now on `os.unlink` and `os.replace` fail in this process as on Windows. Linux only."""
    os.unlink = refusing(os.unlink, position=0)
    os.replace = refusing(os.replace, position=1)


def mapped_files() -> set[str]:
    """Return the names, without folders, of the files that this process has mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {Path(fields[5]).name for line in lines if len(fields := line.split(maxsplit=5)) == 6}


def refusing(function: Any, position: int) -> Any:
    """Return `function`, which fails where its argument at `position` is the path of a mapped file."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        name = Path(os.fsdecode(arguments[position])).name
        if name in mapped_files():
            raise PermissionError(errno.EACCES, "The process cannot access the file: it is mapped", name)
        return function(*arguments, **options)

    return refuse
