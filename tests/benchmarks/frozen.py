"""How large examples/desktop_tk.py is when PyInstaller has frozen it, and how long until its window takes instructions.

python -m tests.benchmarks.frozen
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.examples.desktop import App, display
from tests.support.frozen import EXAMPLE, freeze

RUNS = 9


def main() -> None:
    """Freeze it, then start it and the example itself by turns; print size and medians."""
    with tempfile.TemporaryDirectory() as folder, display(Path(folder)) as screen:
        started = time.perf_counter()
        program = freeze(Path(folder))
        print(f"frozen in {time.perf_counter() - started:.0f} s")
        files = [path for path in program.parent.rglob("*") if path.is_file() and not path.is_symlink()]
        print(f"size {sum(path.stat().st_size for path in files) / 1e6:.0f} MB in {len(files)} files")
        commands: dict[str, Sequence[str | Path]] = {"frozen": [program], "python": [sys.executable, EXAMPLE]}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                seconds[name].append(seconds_until_free(command, screen))
        for name, found in seconds.items():
            print(f"{name}: ready after {statistics.median(found):.2f} s")


def seconds_until_free(command: Sequence[str | Path], screen: Mapping[str, str]) -> float:
    """From the start of the process until the demo is loaded and the window takes an instruction."""
    started = time.perf_counter()
    with App(command, screen, os.environ) as app:
        app.wait_until_free()
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
