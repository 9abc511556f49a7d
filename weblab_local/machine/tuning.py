"""What `weblab-local bench --save` found best here for a workload, for `load` where its caller leaves it open."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from weblab_local.errors import WeblabError
from weblab_local.home import read_settings, write_settings
from weblab_local.i18n import _
from weblab_local.llama.kv_types import KvType

WorkloadName = Literal["chat", "prompt", "serve"]
"""What a model is loaded for: one conversation; texts that are read, with hardly anything written; several answers."""

KEYS: Mapping[WorkloadName, str] = {"chat": "bench", "prompt": "bench_prompt", "serve": "bench_serve"}
"""Where the settings of the store keep it: by machine, since a home directory may be on several."""

PROMPT_BATCH = 512
"""Tokens computed at once where nearly everything is reading; docs/figures.md ("Evaluating") has what it brings."""


@dataclass(frozen=True)
class Setting:
    """What `bench` compares. The names are Engine's."""

    n_threads: int
    kv_type: KvType = "f16"
    flash_attention: bool = True
    repack: bool = True
    n_batch: int | None = None

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
    n_batch: int | None = None


def choose(
    n_threads: int | None = None,
    kv_type: KvType | None = None,
    flash_attention: bool | None = None,
    repack: bool | None = None,
    n_batch: int | None = None,
    *,
    workload: WorkloadName = "chat",
    repack_for_prompts: bool = True,
) -> Choice:
    """The caller's values; for those that are None what was saved for this machine and workload, else the defaults.

    Where nothing was saved for a workload, what was saved for "chat" is used, but for "prompt" a batch of
    PROMPT_BATCH, and weights are rearranged only if that is said to read prompts faster. Raises WeblabError for what is
    no workload.
    """
    require_workload(workload)
    saved = saved_setting(workload)
    if saved is None and workload == "prompt":
        n_batch = n_batch or PROMPT_BATCH
        repack = repack_for_prompts if repack is None else repack
    saved = saved or saved_setting("chat")
    if saved is None:
        return Choice(n_threads, kv_type or "f16", flash_attention, repack is not False, n_batch)
    if kv_type is None:
        kv_type = "f16" if flash_attention is False else saved.kv_type
    if flash_attention is None and kv_type == "f16":
        flash_attention = saved.flash_attention
    return Choice(
        n_threads or saved.n_threads,
        kv_type,
        flash_attention,
        saved.repack if repack is None else repack,
        n_batch or saved.n_batch,
    )


def saved_setting(workload: WorkloadName = "chat") -> Setting | None:
    """What was saved for this machine; None where nothing was, or nothing that makes sense."""
    machines = read_settings().get(KEYS[workload])
    value = machines.get(machine()) if isinstance(machines, dict) else None
    return _setting(value) if isinstance(value, dict) else None


def save_setting(setting: Setting, workload: WorkloadName = "chat") -> None:
    """Make `setting` this machine's default for a workload."""
    settings = read_settings()
    machines = settings.get(KEYS[workload])
    others = machines if isinstance(machines, dict) else {}
    write_settings({**settings, KEYS[workload]: {**others, machine(): asdict(setting)}})


def require_workload(workload: str) -> None:
    """Raise WeblabError for what is no workload."""
    if workload not in get_args(WorkloadName):
        raise WeblabError(
            _("There is no workload called {name!r}.").format(name=workload),
            _("Choose from {names}.").format(names=", ".join(get_args(WorkloadName))),
        )


def _setting(value: Mapping[str, Any]) -> Setting | None:
    n_threads, kv_type, n_batch = (value.get(key) for key in ("n_threads", "kv_type", "n_batch"))
    flash_attention, repack = value.get("flash_attention"), value.get("repack")
    if not _is_count(n_threads) or kv_type not in get_args(KvType) or not (n_batch is None or _is_count(n_batch)):
        return None
    if not (isinstance(flash_attention, bool) and isinstance(repack, bool)):
        return None
    setting = Setting(cast(int, n_threads), cast(KvType, kv_type), flash_attention, repack, n_batch)
    return setting if setting.allowed else None


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


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
