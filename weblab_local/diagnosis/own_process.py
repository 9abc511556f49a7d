"""A command of this program in a process of its own, which llama.cpp or a driver under it may end."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weblab_local.i18n import _, language_in_use

_LAST_LINES = 3
"""Of stderr, after a crash: among them is what llama.cpp, a driver or the system said last."""


@dataclass(frozen=True)
class Ended:
    """How it ended. `error` is for a person, "" where the command did what it is for."""

    stdout: str
    error: str
    crashed: bool
    """Whether the process was ended from inside or by the system, and did not end itself."""


def program() -> list[str]:
    """How this program is started; empty inside of an app, where sys.executable is nothing, or the app."""
    executable = sys.executable or ""
    name = Path(executable).stem.lower()
    if getattr(sys, "frozen", False):  # PyInstaller's executable is the program, or an app that has it inside
        return [executable] if name.startswith("weblab-local") else []
    is_python = name.startswith(("python", "pypy")) and Path(executable).is_file()
    return [executable, "-m", "weblab_local"] if is_python and sys.orig_argv else []


def run(arguments: Sequence[str], seconds: float) -> Ended:
    """Run `weblab-local` with these arguments, in the language in use; one that takes longer has crashed."""
    command = [*program(), "--lang", language_in_use(), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            env=os.environ | {"PYTHONUTF8": "1", "GGML_NO_BACKTRACE": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Ended("", str(error), crashed=True)
    said = done.stderr.strip().splitlines()
    # A signal's number is negative; Windows has its exceptions as large numbers.
    if done.returncode < 0 or done.returncode > 255:
        text = _("llama.cpp ends the process (exit code {code}).").format(code=done.returncode)
        return Ended(done.stdout, "\n".join([text, *said[-_LAST_LINES:]]), crashed=True)
    if any(line.startswith("Traceback") for line in said):
        said = said[-1:]
    error_text = "\n".join(said).removeprefix("weblab-local: ") or _("exit code {code}").format(code=done.returncode)
    return Ended(done.stdout, error_text if done.returncode else "", crashed=False)
