"""How large programs are when PyInstaller has frozen them, and how long until one can use them.

python -m tests.benchmarks.frozen          examples/desktop_tk.py, until its window takes instructions
python -m tests.benchmarks.frozen --app    what `make app` has built, until its page is there in Chromium; what is in it
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.app.double_click import FOLDER, double_clicked
from tests.examples.desktop import App, display
from tests.support.frozen import EXAMPLE, freeze

RUNS = 9
LARGEST = 12
"""Parts of the app that are named with their size."""


def main() -> None:
    """Measure the example or, with --app, the app."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--app", action="store_true")
    if parser.parse_args().app:
        measure_app()
    else:
        measure_example()


def measure_app() -> None:
    """Print the app's size and that of its largest parts, and the median time until its page asks for a model."""
    files = [path for path in FOLDER.rglob("*") if path.is_file() and not path.is_symlink()]
    sizes = Counter[str]()
    for path in files:
        part = path.relative_to(FOLDER).parts
        sizes[part[min(1, len(part) - 1)]] += path.stat().st_size
    print(f"size {sum(sizes.values()) / 1e6:.0f} MB in {len(files)} files")
    print(", ".join(f"{part} {size / 1e6:.1f}" for part, size in sizes.most_common(LARGEST)))
    served, shown = [], []
    with sync_playwright() as playwright:
        for _ in range(RUNS):
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
                double_clicked(Path(home), playwright) as opened,
            ):
                opened.chat.page.get_by_role("dialog").wait_for()
                shown.append(time.perf_counter() - opened.started)
                served.append(opened.served - opened.started)
    print(f"page served after {statistics.median(served):.2f} s, in Chromium after {statistics.median(shown):.2f} s")


def measure_example() -> None:
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
