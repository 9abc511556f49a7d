"""What this machine has: cores."""

import os

import psutil


def physical_cores() -> int:
    """Cores this process may compute on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))
