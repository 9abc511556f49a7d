"""Progress: a bar for a person at a terminal, a plain line now and then for a log."""

import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

from convert.progress import plain_lines, shown
from tests.support.conversions import ROOT
from weblab_local.sizes import byte_count

GB = 10**9


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(updates: Iterable[tuple[float, int, int]]) -> list[str]:
    """The lines for updates (seconds since the last one, bytes done, bytes in all)."""
    lines: list[str] = []
    clock = Clock()
    update = plain_lines("converting", lines.append, clock)
    for seconds, done, total in updates:
        clock.seconds += seconds
        update(done, total)
    return lines


def test_a_line_now_and_then_says_how_far_it_is_how_fast_and_how_long_still() -> None:
    lines = lines_of((4, n * GB, 20 * GB) for n in range(1, 21))

    assert lines == [
        "converting: 3.00 GB of 20.00 GB (15%), 250.0 MB/s, 1:08 min left",
        "converting: 6.00 GB of 20.00 GB (30%), 250.0 MB/s, 0:56 min left",
        "converting: 9.00 GB of 20.00 GB (45%), 250.0 MB/s, 0:44 min left",
        "converting: 12.00 GB of 20.00 GB (60%), 250.0 MB/s, 0:32 min left",
        "converting: 15.00 GB of 20.00 GB (75%), 250.0 MB/s, 0:20 min left",
        "converting: 18.00 GB of 20.00 GB (90%), 250.0 MB/s, 0:08 min left",
        "converting: 20.00 GB of 20.00 GB (100%), 250.0 MB/s, 1:20 min",
    ]


def test_quick_work_has_one_line_at_its_end() -> None:
    lines = lines_of((1 / 64, n * 1000, 320_000) for n in range(1, 321))

    assert lines == ["converting: 320 kB of 320 kB (100%), 64 kB/s, 0:05 min"]


def test_work_that_takes_no_time_is_no_division_by_zero() -> None:
    assert len(lines_of([(0, 5, 5)])) == 1


def test_slow_updates_each_have_their_line() -> None:
    lines = lines_of([(3600, 1, 3), (3600, 2, 3)])

    assert [line.rpartition(", ")[2] for line in lines] == ["120:00 min left", "60:00 min left"]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 kB"),
        (81_672, "82 kB"),
        (999_499, "999 kB"),
        (1_000_000, "1.0 MB"),
        (5_120_000, "5.1 MB"),
        (10**9, "1.00 GB"),
        (6_310_000_000, "6.31 GB"),
        (21_420_000_000, "21.42 GB"),
    ],
)
def test_sizes_are_decimal(n_bytes: int, text: str) -> None:
    assert byte_count(n_bytes) == text


def test_in_a_log_there_are_lines_on_stderr_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("converting") as progress:
        for done in range(1, 1001):
            progress(done, 1000)

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("converting: 1 kB of 1 kB (100%)")
    assert err.endswith(" min\n")
    assert err.removesuffix("\n").isprintable()


AT_A_TERMINAL = """
from convert.progress import shown
with shown("converting") as progress:
    for done in range(1, 101):
        progress(done * 10**6, 100 * 10**6)
"""


def test_at_a_terminal_there_is_a_bar() -> None:
    openpty = getattr(os, "openpty", None)
    if openpty is None:
        pytest.skip("needs a pseudo-terminal")
    screen, terminal = openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=terminal
    )
    os.close(terminal)
    shown_there = b"".join(iter(lambda: read(screen), b"")).decode()
    os.close(screen)
    out, _ = process.communicate()

    assert (process.returncode, out) == (0, b"")
    last_line = shown_there.replace("\r", "\n").split("converting")[-1]
    assert "━━━━" in last_line
    assert "100.0/100.0 MB" in last_line
    assert "0:00:00" in last_line


def read(screen: int) -> bytes:
    """What comes next on the screen; b"" when the last program that had it open has ended, which Linux calls EIO."""
    try:
        return os.read(screen, 1 << 16)
    except OSError:
        return b""
