"""The converter as the tests call it: in this process, or as the command `python -m convert` in one of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from convert.run import Request, run

ROOT = Path(__file__).parents[2]

_LAUNCH = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, "-m", "convert", *sys.argv[2:]])
"""


def converted(source: Path, output: Path, *quants: str, revision: str | None = None, **options: Any) -> list[Path]:
    """Convert the checkpoint in `source` to the folder `output`; the paths of the results."""
    return run(Request(str(source), revision, quants, output, **options))


def start_convert(*arguments: str | Path, largest_file: int = 0) -> subprocess.Popen[str]:
    """`python -m convert` with `arguments`, started; where `largest_file` is given, it can write no more to a file.

    The limit is for POSIX only.
    """
    launch = ["-c", _LAUNCH, str(largest_file)] if os.name == "posix" else ["-m", "convert"]
    return subprocess.Popen(
        [sys.executable, *launch, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run_convert(*arguments: str | Path, largest_file: int = 0) -> subprocess.CompletedProcess[str]:
    """`python -m convert` with `arguments`, run to its end."""
    with start_convert(*arguments, largest_file=largest_file) as process:
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def files_in(folder: Path) -> list[str]:
    """The names in `folder`, without the hidden file that locks it."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
