"""The device under test, a second one, and the demo in the quantizations that are tried on them.

WEBLAB_TEST_BACKEND says which backend is meant; without it nothing here is collected. For "rpc" the device is a worker
on loopback, which computes as this machine's CPU does: so all of this can be run where there is no card.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.support import Target
from tests.support.conversions import ROOT, converted
from tests.support.workers import started_worker

BACKEND = os.environ.get("WEBLAB_TEST_BACKEND", "")
QUANTS = ("F16", "Q8_0", "Q4_K_M", "W4")

collect_ignore_glob = [] if BACKEND else ["test_*.py"]

_COUNT = """
import json
from weblab_local.machine.devices import list_devices
print(json.dumps([device.backend for device in list_devices() if device.kind in ("gpu", "igpu")]))
"""


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    """The device under test."""
    if BACKEND == "rpc":
        with started_worker() as (address, _process):
            yield Target(BACKEND, (address,))
        return
    if BACKEND == "vulkan" and not _devices() and "GGML_VK_VISIBLE_DEVICES" not in os.environ:
        os.environ["GGML_VK_VISIBLE_DEVICES"] = "0"  # Mesa's software device, which nobody gets without asking
    names = {"cuda": "CUDA", "metal": "MTL", "vulkan": "Vulkan"}
    assert names[BACKEND] in _devices(), f"llama.cpp finds no device of {BACKEND}: it has {_devices()}"
    yield Target(BACKEND, ())


def _devices() -> list[str]:
    """The backends of the devices that a process of its own finds."""
    found = subprocess.run([sys.executable, "-c", _COUNT], cwd=ROOT, check=True, capture_output=True, text=True)
    names: list[str] = json.loads(found.stdout.splitlines()[-1])
    return names


@pytest.fixture(scope="session")
def second() -> Iterator[str]:
    """A worker on loopback, to be a second device beside whatever the first one is."""
    with started_worker() as (address, _process):
        yield address


@pytest.fixture(scope="session")
def demos(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo in each of QUANTS."""
    return dict(zip(QUANTS, converted(demo_checkpoint, tmp_path_factory.mktemp("demos"), *QUANTS), strict=True))
