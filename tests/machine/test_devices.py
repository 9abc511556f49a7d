"""Cores, memory and ggml's devices: this machine's, and machines that are written down as files."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from convert.writing.plan import available_cores
from tests.support.conversions import ROOT
from weblab_local.machine.devices import cpu_quota, linux_cores, list_devices, parse_cpu_list, physical_cores, ram
from weblab_local.machine.tuning import usable_cpus

CPU = "sys/devices/system/cpu"
GIB = 2**30


def machine(root: Path, files: Mapping[str, object]) -> Path:
    """A root folder with `files` in it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def siblings(*cores: str) -> dict[str, object]:
    """The topology of CPUs whose hyper-threads are listed per core, like "0-1"."""
    return {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": core for core in cores for cpu in parse_cpu_list(core)}


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0,2-3,7-7", {0, 2, 3, 7})],
)
def test_the_kernels_lists_of_cpus(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


# An i7-13700: 8 performance cores with two threads each, 8 efficiency cores.
RAPTOR_LAKE = siblings(*(f"{2 * core}-{2 * core + 1}" for core in range(8)), *map(str, range(16, 24))) | {
    "sys/devices/cpu_core/cpus": "0-15",
    "sys/devices/cpu_atom/cpus": "16-23",
}
# An RK3588: four A55, four A76.
RK3588 = siblings(*map(str, range(8))) | {f"{CPU}/cpu{cpu}/cpu_capacity": 1024 if cpu >= 4 else 530 for cpu in range(8)}
# A phone's three kinds; the middle ones are nearly as fast as the first.
THREE_KINDS = siblings(*map(str, range(8))) | {
    f"{CPU}/cpu{cpu}/cpu_capacity": {0: 325, 1: 871, 2: 1024}[(cpu >= 4) + (cpu == 7)] for cpu in range(8)
}
# Cores of one kind, two of which are allowed to clock higher.
FAVOURED = siblings("0,4", "1,5", "2,6", "3,7") | {
    f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq": 5200000 if cpu % 4 < 2 else 5000000 for cpu in range(8)
}
# Ryzen AI 9 HX 370: four Zen 5, eight Zen 5c, told apart by frequency only.
STRIX_POINT = siblings(*(f"{core},{core + 12}" for core in range(12))) | {
    f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq": 5157000 if cpu % 12 < 4 else 3300000 for cpu in range(24)
}


@pytest.mark.parametrize(
    ("files", "allowed", "cores"),
    [
        (RAPTOR_LAKE, range(24), 8),
        (RAPTOR_LAKE, [0, 1, 2, 16, 17], 2),
        (RAPTOR_LAKE, range(16, 20), 4),
        (RK3588, range(8), 4),
        (THREE_KINDS, range(8), 4),
        (FAVOURED, range(8), 4),
        (FAVOURED, [0, 4], 1),
        (STRIX_POINT, range(24), 4),
        ({}, range(8), 0),
    ],
)
def test_physical_performance_cores(files: Mapping[str, object], allowed: range, cores: int, tmp_path: Path) -> None:
    assert linux_cores(set(allowed), machine(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/user.slice/app.service",
                "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
                "sys/fs/cgroup/user.slice/app.service/cpu.max": "400000 100000",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/docker/1f",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": 50000,
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
            },
            None,
        ),
        ({}, None),
    ],
)
def test_the_control_groups_share_of_the_cpus(files: Mapping[str, object], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(machine(tmp_path, files)) == quota


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/box",
            "sys/fs/cgroup/box/memory.max": GIB,
            "sys/fs/cgroup/box/memory.current": GIB // 2,
            "sys/fs/cgroup/box/memory.stat": f"anon 1\nactive_file {GIB // 8}\ninactive_file {GIB // 8}",
        },
        {
            "proc/self/cgroup": "4:memory:/box",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB // 4,
        },
    ],
)
def test_a_control_groups_memory_counts_where_it_is_less(files: Mapping[str, object], tmp_path: Path) -> None:
    memory = ram(machine(tmp_path, files))
    assert memory.total == GIB
    assert memory.available == GIB * 3 // 4


def test_without_control_groups_memory_is_the_machines(tmp_path: Path) -> None:
    assert ram(tmp_path).total == psutil.virtual_memory().total


def test_cores_are_some_of_this_machines() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


def test_where_the_system_knows_no_affinity_all_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cpus() == available_cores() == os.cpu_count()
    assert 1 <= physical_cores() <= usable_cpus()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_follow_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from weblab_local.machine.devices import physical_cores; print(physical_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_ggmls_devices_have_the_memory_that_psutil_says() -> None:
    cpus = [device for device in list_devices() if device.kind == "cpu"]
    assert [device.name for device in cpus] == ["CPU"]
    assert cpus[0].buffer == "CPU"
    assert 0 < cpus[0].free <= cpus[0].total <= psutil.virtual_memory().total
