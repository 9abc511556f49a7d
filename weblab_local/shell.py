"""Commands for a person to type."""

import shlex
import subprocess
import sys


def quoted(*words: str) -> str:
    """Return `words` as one command, quoted as this system's shell wants it: in double quotes on Windows."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
