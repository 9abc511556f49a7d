"""The setting that `weblab-local bench --save` found best here, for `load` to use where its caller leaves one open."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from weblab_local.home import read_settings, write_settings
from weblab_local.llama.kv_types import KvType

KEY = "bench"
"""Where the settings of the store keep it: by machine, since a home directory may be on several."""


@dataclass(frozen=True)
class Setting:
    """What `bench` compares. The names are Engine's."""

    n_threads: int
    kv_type: KvType = "f16"
    flash_attention: bool = True
    repack: bool = True

    @property
    def allowed(self) -> bool:
        """Whether llama.cpp takes it: a quantized V cache needs flash attention."""
        return self.kv_type == "f16" or self.flash_attention


@dataclass(frozen=True)
class Choice:
    """A setting as Engine takes it; None is left to the engine."""

    n_threads: int | None
    kv_type: KvType
    flash_attention: bool | None
    repack: bool


def choose(
    n_threads: int | None = None,
    kv_type: KvType | None = None,
    flash_attention: bool | None = None,
    repack: bool | None = None,
) -> Choice:
    """The caller's values; for those that are None what was saved for this machine, else the engine's defaults."""
    saved = saved_setting()
    if saved is None:
        return Choice(n_threads, kv_type or "f16", flash_attention, repack is not False)
    if kv_type is None:
        kv_type = "f16" if flash_attention is False else saved.kv_type
    if flash_attention is None and kv_type == "f16":
        flash_attention = saved.flash_attention
    return Choice(n_threads or saved.n_threads, kv_type, flash_attention, saved.repack if repack is None else repack)


def saved_setting() -> Setting | None:
    """What was saved for this machine; None where nothing was, or nothing that makes sense."""
    machines = read_settings().get(KEY)
    value = machines.get(machine()) if isinstance(machines, dict) else None
    return _setting(value) if isinstance(value, dict) else None


def save_setting(setting: Setting) -> None:
    """Make `setting` this machine's default."""
    settings = read_settings()
    machines = settings.get(KEY)
    others = machines if isinstance(machines, dict) else {}
    write_settings({**settings, KEY: {**others, machine(): asdict(setting)}})


def _setting(value: Mapping[str, Any]) -> Setting | None:
    n_threads, kv_type = value.get("n_threads"), value.get("kv_type")
    flags = (value.get("flash_attention"), value.get("repack"))
    if type(n_threads) is not int or n_threads < 1 or kv_type not in get_args(KvType):
        return None
    if not all(isinstance(flag, bool) for flag in flags):
        return None
    setting = Setting(n_threads, cast(KvType, kv_type), *map(bool, flags))
    return setting if setting.allowed else None


def machine() -> str:
    """This machine for the settings: its processor, and how many CPUs of it this process may use."""
    return f"{processor()}, {usable_cpus()} CPUs"


def usable_cpus() -> int:
    """CPUs that this process may use, hyper-threads counted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as the system tells it."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
        if names:
            return names[0]
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if name:
            return name
    return platform.processor() or platform.machine()
