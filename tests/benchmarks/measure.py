"""Run a command and measure it from outside: time, memory that is not page cache, bytes written, disk used."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from weblab_local.files import allocated

SAMPLE_INTERVAL = 0.1


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes. `memory` is the peak of anonymous memory; mapped files, which are page cache, do not count."""

    seconds: float
    memory: int
    written: int
    disk: int


def run_measured(command: Sequence[str], folder: Path) -> Measured:
    """Run `command` to its end; `disk` is the most that `folder` held. Raises CalledProcessError when it fails."""
    memory = written = disk = 0
    started = time.monotonic()
    with subprocess.Popen(command) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                memory = max(memory, anonymous_memory(watched.pid))
                written = max(written, _written(watched))
            except (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
                break
            disk = max(disk, folder_size(folder))
            time.sleep(SAMPLE_INTERVAL)
    seconds = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(seconds, memory, written, max(disk, folder_size(folder)))


def anonymous_memory(pid: int) -> int:
    """Return the bytes of a process's memory that is not page cache; where the system does not say, all of it."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process(pid).memory_info().rss)


def _written(process: psutil.Process) -> int:
    """Bytes given to the file system; 0 where the system does not say."""
    try:
        return int(process.io_counters().write_chars)
    except (AttributeError, psutil.AccessDenied):
        return 0


def folder_size(folder: Path) -> int:
    """Bytes of disk that the files in `folder` occupy."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += allocated(path)
        except FileNotFoundError:
            continue
    return total


def forget_cached(paths: Sequence[Path]) -> None:
    """Drop files from the page cache, so that the next reading comes from the disk (where the system can)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
