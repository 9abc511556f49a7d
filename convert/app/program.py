"""The program that is frozen: the command `weblab-local`, and `weblab-local app` for who double-clicks it."""

import sys
from pathlib import Path

from weblab_local.cli import main


def is_double_clicked() -> bool:
    """Return whether nobody typed a command: there are no arguments, and no terminal to print a help to."""
    has_terminal = sys.stdin is not None and sys.stdin.isatty()
    return len(sys.argv) == 1 and (not has_terminal or Path(sys.executable).stem.endswith("-app"))


if is_double_clicked():
    sys.argv.append("app")
main()
