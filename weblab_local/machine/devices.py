"""What this machine has: cores to compute on, memory, and ggml's devices."""

import ctypes
import logging
import math
import os
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from weblab_local.llama import backends, ggml
from weblab_local.llama.ggml import POINTER, SIZE, TEXT
from weblab_local.machine.tensor_limit import ANY_SIZE, largest_tensor

logger = logging.getLogger("weblab_local")

Kind = Literal["cpu", "gpu", "igpu", "accel", "rpc"]
"""igpu: a GPU that shares the CPU's memory; accel: a library for the CPU, like BLAS; rpc: a device of a worker."""

_KINDS: tuple[Kind, ...] = ("cpu", "gpu", "igpu", "accel")
"""In the order of `enum ggml_backend_dev_type`. Devices of later types are left out: they wrap others, or are new."""

_UNEVEN = 0.8
"""Cores slower than this share of the fastest are efficiency cores. Favoured cores of one kind differ by a few
percent; Zen 5c reaches 65% of Zen 5, the A55 of an RK3588 75% of its A76."""


@dataclass(frozen=True)
class Device:
    """A device of ggml. `free` and `total` are bytes of its own memory, or of the memory it shares."""

    name: str
    description: str
    kind: Kind
    backend: str
    """The backend's name: "CPU", "CUDA", "MTL", "Vulkan", "RPC"."""
    free: int
    total: int
    handle: int
    """`ggml_backend_dev_t`."""
    buffer: str
    """What llama.cpp's log calls this device's buffers."""
    host_buffer: str = ""
    """What the log calls the pinned host memory that it brings, if any; llama.cpp then rearranges no weights for the
    CPU, and computes in that memory what the CPU computes."""
    largest_tensor: int = ANY_SIZE
    """Bytes of the largest tensor that it can compute with."""

    @property
    def shares_ram(self) -> bool:
        """Whether its memory is the CPU's."""
        return self.kind in ("cpu", "igpu", "accel") or self.backend == "MTL"


@dataclass(frozen=True)
class Memory:
    """Bytes of RAM that this process may have in all, and that are available to it now."""

    total: int
    available: int


def description(handle: int) -> str:
    """What the device with this handle calls itself: a card's name, a worker's address."""
    return _text("ggml_backend_dev_description", handle)


def list_devices(rpc: Collection[str] = ()) -> list[Device]:
    """ggml's devices, in ggml's order. Of workers only those at the addresses `rpc`, which have just been probed:

    asking for the memory of one that is gone ends the process.
    """
    backends.start()
    count = ggml.function("ggml_backend_dev_count", SIZE)()
    handles = [ggml.function("ggml_backend_dev_get", POINTER, SIZE)(index) for index in range(count)]
    devices = []
    for handle in handles:
        name = _text("ggml_backend_dev_name", handle)
        described = description(handle)
        registry = ggml.function("ggml_backend_dev_backend_reg", POINTER, POINTER)(handle)
        backend = _text("ggml_backend_reg_name", registry)
        type_number = ggml.function("ggml_backend_dev_type", ctypes.c_int, POINTER)(handle)
        if type_number >= len(_KINDS):
            logger.info("ggml's device %s is of a type that is not used here: %d", name, type_number)
            continue
        kind = _KINDS[type_number]
        if backend == "RPC":
            if described not in rpc:
                continue
            kind = "rpc"
        free, total = SIZE(), SIZE()
        ggml.function("ggml_backend_dev_memory", None, POINTER, POINTER, POINTER)(
            handle, ctypes.byref(free), ctypes.byref(total)
        )
        buffer_type = ggml.function("ggml_backend_dev_buffer_type", POINTER, POINTER)(handle)
        host_buffer = ggml.function("ggml_backend_dev_host_buffer_type", POINTER, POINTER)(handle)
        devices.append(
            Device(
                name=name,
                description=described,
                kind=kind,
                backend=backend,
                free=free.value,
                total=total.value,
                handle=handle,
                buffer=_text("ggml_backend_buft_name", buffer_type),
                host_buffer=_text("ggml_backend_buft_name", host_buffer) if host_buffer else "",
                largest_tensor=largest_tensor(handle),
            )
        )
    # ggml calls all of the CPU's memory free, and some devices report nothing, meaning that.
    memory = ram()
    return [
        replace(device, free=memory.available, total=memory.total)
        if device.kind == "cpu" or not device.total
        else device
        for device in devices
    ]


def ram(root: Path = Path("/")) -> Memory:
    """The machine's memory by psutil, or what the process's control groups leave of it."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for group in _groups(root, "memory"):
        limit = _number(group, "memory.max", "memory.limit_in_bytes")
        if limit is None or limit >= machine.total:
            continue
        used = _number(group, "memory.current", "memory.usage_in_bytes") or 0
        cached = sum(_statistics(group / "memory.stat").get(key, 0) for key in ("inactive_file", "active_file"))
        total = min(total, limit)
        available = min(available, max(0, limit - used + cached))
    return Memory(total, available)


def on_battery() -> bool:
    """Whether this machine runs on its battery now; False where nobody can say."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, RuntimeError):
        return False
    return battery is not None and battery.power_plugged is False


def physical_cores() -> int:
    """Cores to compute on: physical ones, of the fast kind, that affinity and control groups leave to this process."""
    allowed = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if sys.platform == "linux":
        cores = linux_cores(allowed or set(range(os.cpu_count() or 1)))
    else:
        cores = (_macos_performance_cores() if sys.platform == "darwin" else None) or psutil.cpu_count(logical=False)
    cores = cores or len(allowed or ()) or os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def linux_cores(allowed: set[int], root: Path = Path("/")) -> int:
    """Physical performance cores among the CPUs `allowed`, by what sysfs under `root` says. 0 when it says nothing."""
    cpus = root / "sys/devices/system/cpu"
    fast = allowed & _performance_cpus(allowed, root) or allowed
    cores = {
        frozenset(parse_cpu_list(siblings))
        for cpu in fast
        if (siblings := _read(cpus / f"cpu{cpu}/topology/thread_siblings_list"))
    }
    return len(cores)


def _performance_cpus(allowed: set[int], root: Path) -> set[int]:
    """Those the machine calls its fast ones: Intel by a list, ARM by capacity, others by frequency."""
    hybrid = _read(root / "sys/devices/cpu_core/cpus")
    if hybrid:
        return parse_cpu_list(hybrid)
    for measure in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        values = {cpu: _read(root / f"sys/devices/system/cpu/cpu{cpu}/{measure}") for cpu in allowed}
        if values and all(values.values()):
            speeds = {cpu: int(value) for cpu, value in values.items()}
            return {cpu for cpu, speed in speeds.items() if speed >= _UNEVEN * max(speeds.values())}
    return allowed


def parse_cpu_list(text: str) -> set[int]:
    """The kernel's lists of CPUs: "0-3,8" is {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the control groups grant, v1 and v2; None without a limit."""
    quotas = []
    for group in _groups(root, "cpu"):
        numbers = _read(group / "cpu.max").split() or [
            _read(group / "cpu.cfs_quota_us"),
            _read(group / "cpu.cfs_period_us"),
        ]
        if all(number.isdecimal() for number in numbers):
            quota, period = map(int, numbers)
            quotas.append(quota / period)
    return min(quotas, default=None)


def _groups(root: Path, controller: str) -> Iterable[Path]:
    """The process's control group for `controller`, then those above it: each may set a limit."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mounted / controller if controllers else mounted
        # In a container the path may be the host's, which is not there: its own group is then the mount's root.
        group = base / path.lstrip("/")
        while group != base:
            yield group
            group = group.parent
        yield base


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(folder: Path, *names: str) -> int | None:
    return next((int(text) for name in names if (text := _read(folder / name)).isdecimal()), None)


def _statistics(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _macos_performance_cores() -> int | None:
    """`hw.perflevel0.physicalcpu`: Apple silicon's fast cores; absent on Intel."""
    value, size = ctypes.c_int(), SIZE(ctypes.sizeof(ctypes.c_int))
    sysctl = ctypes.CDLL(None).sysctlbyname
    failed = sysctl(b"hw.perflevel0.physicalcpu", ctypes.byref(value), ctypes.byref(size), None, SIZE(0))
    return None if failed else value.value


def _text(name: str, handle: Any) -> str:
    text = ggml.function(name, TEXT, POINTER)(handle)
    return text.decode("utf-8", errors="replace") if text else ""
