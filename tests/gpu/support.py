"""What the tests of a device share: loading onto it, and how far its distributions are from the CPU's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from weblab_local import Completion, SamplingParams, load
from weblab_local.diagnosis.device_run import UNKNOWN, distributions
from weblab_local.engine.engine import Engine
from weblab_local.machine.devices import Device, list_devices
from weblab_local.machine.offload import offload_targets
from weblab_local.machine.rpc import register

LAYERS = 5
"""The demo's four and the output matrix."""

KL_LIMIT = 0.001
"""Nats. What a backend that rounds otherwise may be from the CPU in the mean; `self_test.MEAN_KL` says more."""

GREEDY = SamplingParams(temperature=0, max_tokens=96)


@dataclass(frozen=True)
class Target:
    """The device under test. Of RPC, it is the worker's; else whatever llama.cpp finds."""

    backend: str
    workers: tuple[str, ...]

    def load(self, path: str | Path, *, with_worker: str = "", **options: Any) -> Engine:
        """Load with all layers on the device, where the options say nothing else.

        On Mesa's software device without flash attention, unless it is asked for: it is many times slower there.
        """
        if self.is_software and options.get("kv_type", "f16") == "f16":
            options.setdefault("flash_attention", False)
        workers = (*self.workers, *filter(None, [with_worker]))
        return load(str(path), **{"n_gpu_layers": -1, "rpc": workers, "n_threads": 1, **options})

    @property
    def is_software(self) -> bool:
        """Whether the device is Mesa's llvmpipe, which computes on the CPU and in its memory."""
        return self.backend == "vulkan" and "llvmpipe" in self.device().description

    @property
    def helps_the_cpu(self) -> bool:
        """Whether llama.cpp lets the device compute long prompts for layers that stayed with the CPU."""
        return self.backend != "rpc"

    def devices(self) -> list[Device]:
        """All that ggml has here now, the CPU among them."""
        return list_devices(register(self.workers) if self.workers else ())

    def device(self) -> Device:
        """The device itself, with what is free on it now."""
        return offload_targets(self.devices())[0]


def on_cpu(path: str | Path, **options: Any) -> Engine:
    """The model on the CPU alone, whatever else is here."""
    engine = load(str(path), n_gpu_layers=0, n_threads=1, **options)
    assert engine.plan is not None
    assert engine.plan.devices == ()
    return engine


def answers(engine: Engine, instructions: Sequence[str]) -> list[Completion]:
    """The greedy answers, one after the other."""
    return [engine.generate(instruction, GREEDY) for instruction in instructions]


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [list(completion.token_ids) for completion in completions]


def unknown_text(engine: Engine) -> NDArray[np.float64]:
    """Log-probabilities after a text that the demo does not know: (positions, vocabulary).

    The first tokens are computed together, as of a prompt, the rest one by one, as of an answer.
    """
    return distributions(engine, engine.tokenize(UNKNOWN), 64)


def mean_kl(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """In nats, from log-probabilities, by scipy."""
    return float(rel_entr(np.exp(expected), np.exp(found)).sum(axis=1).mean())


def with_memory(devices: Sequence[Device], free: int) -> list[Device]:
    """The devices, those that are not the CPU with so many bytes free."""
    return [device if device.kind == "cpu" else replace(device, free=free) for device in devices]
