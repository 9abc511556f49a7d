"""Progress on stderr: a bar with speed and time left at a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from weblab_local.sizes import byte_count

PLAIN_INTERVAL = 10.0
"""Seconds between two lines where stderr is no terminal."""


def say(message: str) -> None:
    """A line for the person who watches; stdout is kept for results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def shown(title: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a callback `(bytes done, bytes in all)` that shows how far the work titled `title` is."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        yield plain_lines(title, say, time.monotonic)


def plain_lines(title: str, write: Callable[[str], None], clock: Callable[[], float]) -> Callable[[int, int], None]:
    """A callback that writes a line every PLAIN_INTERVAL seconds of `clock`, and one at the end."""
    started = last = clock()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if done < total and now - last < PLAIN_INTERVAL:
            return
        last = now
        seconds = max(now - started, 1e-9)
        left = (total - done) * seconds / max(done, 1)
        write(
            f"{title}: {byte_count(done)} of {byte_count(total)} ({100 * done // max(total, 1)}%), "
            f"{byte_count(done / seconds)}/s, " + (f"{_minutes(left)} left" if done < total else _minutes(seconds))
        )

    return update


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
