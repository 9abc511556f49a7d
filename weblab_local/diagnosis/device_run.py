"""The demo computed on one device: its answers, its distributions, its speeds and what it takes.

`self_test` has this done for every device, each in a process of its own, and compares. What that process prints is the
JSON of `listed` or of `run_on`.
"""

import base64
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weblab_local.diagnosis.bench import Workload, timed, vocabulary_size
from weblab_local.diagnosis.self_test import KNOWN, DeviceRun
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama import ggml
from weblab_local.llama.backends import system_info
from weblab_local.machine.devices import Device, list_devices
from weblab_local.machine.placement import Placement
from weblab_local.machine.rpc import register
from weblab_local.machine.tuning import Choice
from weblab_local.models import loading
from weblab_local.models.store import demo_model

UNKNOWN = (
    "港の見える丘で、地図を描くのが好きな姉と、機械を直すのが好きな弟が暮らしていました。ある朝、霧の中から"
    "古い船が現れ、二人に一枚の手紙を届けました。The letter had no name on it, only a drawing of seven islands "
    "and a question: which of them is still moving? 二人は顔を見合わせ、"
)
"""A text that the demo does not know. Its distributions there are broad, so that small errors show in all of them."""

_BATCHED = 64
"""Tokens of it that are computed in one batch, as prompts are; each further one is computed alone, as answers are."""

_N_CTX = 512
_SPEED = Workload(n_prompt=256, n_generate=32, repetitions=3)
_GREEDY = SamplingParams(temperature=0, max_tokens=150)
_CHOICE = Choice(n_threads=None, kv_type="f16", flash_attention=None, repack=True)
"""The engine's defaults, not what `bench` saved here: what is sent to somebody else should be comparable."""


def listed(rpc: Sequence[str]) -> dict[str, Any]:
    """The devices that a model can be put on, the CPU first, and which llama.cpp this is."""
    devices = _candidates(rpc)
    return {
        "devices": [
            {key: getattr(device, key) for key in ("name", "description", "kind", "backend", "free", "total")}
            for device in devices
        ],
        "llama_cpp": _text("ggml_commit"),
        "ggml": _text("ggml_version"),
        "system_info": system_info(),
    }


def run_on(name: str, rpc: Sequence[str]) -> DeviceRun:
    """Compute everything on the device called `name`, with all layers there. WeblabError where that cannot be."""
    devices = _candidates(rpc)
    device = next((device for device in devices if device.name == name), None)
    if device is None:
        raise WeblabError(_("There is no device {name} any more.").format(name=name))
    path = demo_model()
    planned = loading.plan(path, n_ctx=_N_CTX, n_gpu_layers=-1, devices=[devices[0], device])
    with loading.load_planned(path, planned, _CHOICE, n_ctx=_N_CTX) as engine:
        answers = [engine.generate(instruction, _GREEDY) for instruction in KNOWN]
        found = distributions(engine, engine.tokenize(UNKNOWN), _BATCHED)
        speeds = timed(engine, _SPEED)
        assert engine.placement is not None
        return DeviceRun(
            answers=tuple(answer.text for answer in answers),
            distributions=base64.b64encode(found.astype("<f4").tobytes()).decode(),
            n_positions=len(found),
            n_layers=planned.n_gpu_layers if device.kind != "cpu" else planned.n_layer + 1,
            prompt_speed=statistics.median(prompt for prompt, _generation in speeds),
            generation_speed=statistics.median(generation for _prompt, generation in speeds),
            memory=bytes_on(device, engine.placement),
            planned_memory=bytes_on(device, planned.placement),
            warnings=tuple(engine.warnings),
        )


def distributions(engine: Engine, ids: Sequence[int], n_batched: int) -> NDArray[np.float64]:
    """Return the log-probabilities of the next token after each of `ids` from the `n_batched`-th on.

    They are (len(ids) - n_batched + 1, n_vocab): of the first position as a batch of `n_batched` tokens computes them,
    of each further one as a step for one token does. Not-a-number where the logits are none.
    """
    end = int(engine.metadata.get("tokenizer.ggml.eos_token_id", 0))
    one = SamplingParams(temperature=0, max_tokens=1, logit_bias={end: -math.inf})  # no token, no log-probabilities
    n_vocab = vocabulary_size(engine.path)
    found = np.full((len(ids) - n_batched + 1, n_vocab), np.nan)
    for row, length in zip(found, range(n_batched, len(ids) + 1), strict=True):
        done = engine.generate(ids[:length], one, raw=True, logprobs=n_vocab)
        for entry in done.logprobs:  # none where the logits are no numbers
            for token, logprob in entry.top:
                row[token] = logprob
    return found


def bytes_on(device: Device, placement: Placement) -> int:
    """What of a placement is on `device`; all of it, where that is the CPU."""
    if device.kind == "cpu":
        return placement.total
    buffers = device.buffer, f"{device.buffer}_Mapped"
    parts = (placement.weights, placement.kv, placement.compute)
    return sum(size for part in parts for buffer, size in part.items() if buffer in buffers)


def _candidates(rpc: Sequence[str]) -> list[Device]:
    """The CPU, then every device that takes layers. A library for the CPU, like BLAS, computes in the CPU's run."""
    devices = list_devices(register(rpc) if rpc else ())
    cpu = [device for device in devices if device.kind == "cpu"]
    return [*cpu[:1], *(device for device in devices if device.kind not in ("cpu", "accel"))]


def _text(name: str) -> str:
    try:
        text: bytes = ggml.function(name, ggml.TEXT)()
    except AttributeError:
        return ""
    return text.decode("utf-8", errors="replace")
