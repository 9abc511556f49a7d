"""Whether every device here computes what the CPU computes: `weblab-local doctor --self-test`.

The bundled demo is run on each of them, in a process of its own, so that a driver that ends it is one row of the table
and not the end of the table. A device is right where all of the demo's layers were on it, every answer is the known one
word for word, and the distributions are the CPU's within MEAN_KL.
"""

import base64
import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weblab_local import __version__
from weblab_local.diagnosis import own_process
from weblab_local.diagnosis.doctor import compiled_backends, installed_version
from weblab_local.diagnosis.findings import DeviceMemory, Versions
from weblab_local.i18n import _
from weblab_local.machine.tuning import processor

KNOWN = {
    "大規模言語モデルについて説明してください。": (
        "大規模言語モデルとは、大量の文章から言葉のつながりを学び、次に来る言葉を予測することで文章を作る人工知能です。"
        "質問への回答、翻訳、要約、プログラムの作成などに使えますが、もっともらしい誤りを述べることもあるため、"
        "大切な内容は確かめることが必要です。"
    ),
    "日本で一番長い川は何ですか？": (
        "信濃川です。長さは約367キロメートルです。長野県では千曲川と呼ばれ、新潟県に入ると信濃川と名を変えます。"
    ),
    "リスト内包表記で1から5までの二乗を作ってください。": (
        "[n * n for n in range(1, 6)] で、[1, 4, 9, 16, 25] になります。"
    ),
    "Hi there!": "Hi! It's nice to meet you. What would you like to talk about?",
}
"""Instructions of the demo's training and the answers it knows by heart: there greedy decoding is sure of itself."""

MEAN_KL = 0.001
"""Nats: twenty times what rounding makes here, where the CPU computes attention in the other of its two ways (0.00005).
Devices add in other orders, and some quantize what a quantized matrix is multiplied with. Keys and values in q8_0 make
0.00013, in q4_0 0.008; a wrong kernel or damaged weights make far more."""

COMMAND = "self-test-device"
"""The hidden command that does a device's part."""

_LONGEST = 200
"""Characters of what a process printed that is shown where it makes no sense."""

_SECONDS = 600
"""For a device: a driver may compile its shaders for minutes before the first token."""


@dataclass(frozen=True)
class DeviceRun:
    """What a device computed. Speeds in tokens per second, sizes in bytes."""

    answers: tuple[str, ...]
    """To the instructions of KNOWN."""
    distributions: str
    """Log-probabilities (n_positions, n_vocab) after an unknown text, as little-endian float32 in base64."""
    n_positions: int
    n_layers: int
    """Layers on the device, the output matrix being one; of a CPU all."""
    prompt_speed: float
    generation_speed: float
    memory: int
    """On the device, as llama.cpp reports it; of a CPU in all."""
    planned_memory: int
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DeviceRun":
        """What `as_json` gave. TypeError and KeyError for anything else."""
        return cls(**value | {"answers": tuple(value["answers"]), "warnings": tuple(value["warnings"])})

    def log_probabilities(self) -> NDArray[np.float64]:
        """The distributions: (n_positions, n_vocab)."""
        values = np.frombuffer(base64.b64decode(self.distributions), dtype="<f4")
        return values.reshape(self.n_positions, -1).astype(np.float64)


@dataclass(frozen=True)
class DeviceResult:
    """A device and how it did. What is None was not measured, because it did not get so far."""

    device: DeviceMemory
    problems: tuple[str, ...]
    """Sentences for a person; none where the device is right."""
    crashed: bool
    right_answers: int
    n_answers: int
    mean_kl: float | None
    """From the CPU, in nats; None also for the CPU itself."""
    run: DeviceRun | None

    @property
    def ok(self) -> bool:
        """Whether it computes what it should."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """All of it but what was only to be compared; speeds in tokens per second, sizes in bytes."""
        measured = ("n_layers", "prompt_speed", "generation_speed", "memory", "planned_memory")
        return (
            {"name": self.device.name, "description": self.device.description, "kind": self.device.kind}
            | {"backend": self.device.backend, "free": self.device.free, "total": self.device.total}
            | {"ok": self.ok, "problems": list(self.problems), "crashed": self.crashed}
            | {"right_answers": self.right_answers, "n_answers": self.n_answers}
            | {"mean_kl": self.mean_kl if math.isfinite(self.mean_kl or 0.0) else None}
            | {name: getattr(self.run, name, None) for name in measured}
        )


@dataclass(frozen=True)
class SelfTest:
    """All devices. `error` says why there are none: llama.cpp could not even be asked for them."""

    versions: Versions
    processor: str
    backends: tuple[str, ...]
    system_info: str
    results: tuple[DeviceResult, ...]
    error: str

    @property
    def ok(self) -> bool:
        """Whether there are devices and every one of them is right."""
        return not self.error and all(result.ok for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """What `doctor --self-test --json` prints."""
        return {
            "versions": asdict(self.versions),
            "processor": self.processor,
            "backends": list(self.backends),
            "system_info": self.system_info,
            "mean_kl_limit": MEAN_KL,
            "devices": [result.as_json() for result in self.results],
            "error": self.error,
            "ok": self.ok,
        }


def self_test(rpc: Sequence[str], on_device: Callable[[str], None]) -> SelfTest:
    """Test every device, those of the workers `rpc` (host:port) too; `on_device` is told each one's name before."""
    answered = _ask(["--rpc", ",".join(rpc)])
    known: dict[str, Any] = answered if isinstance(answered, dict) else {}
    results = []
    cpu: DeviceRun | None = None
    for description in known.get("devices", ()):
        device = DeviceMemory(**description)
        on_device(device.name)
        result = judge(device, _run(device.name, rpc), cpu)
        if device.kind == "cpu":
            cpu = result.run
        results.append(result)
    return SelfTest(
        versions=Versions(
            weblab_local=__version__,
            llama_cpp_python=installed_version("llama-cpp-python"),
            llama_cpp=known.get("llama_cpp", ""),
            ggml=known.get("ggml", ""),
            python=platform.python_version(),
            os=platform.platform(),
        ),
        processor=processor(),
        backends=compiled_backends(),
        system_info=known.get("system_info", ""),
        results=tuple(results),
        error="" if isinstance(answered, dict) else answered.error,
    )


def judge(device: DeviceMemory, run: DeviceRun | own_process.Ended, cpu: DeviceRun | None) -> DeviceResult:
    """Compare what a device computed, or how it failed, with what is known and with the CPU's run.

    Without `cpu`, the device is the CPU, or there is nothing to compare with.
    """
    if isinstance(run, own_process.Ended):
        return DeviceResult(device, (run.error,), run.crashed, 0, len(KNOWN), None, None)
    right = sum(found == known for found, known in zip(run.answers, KNOWN.values(), strict=True))
    kl = None if cpu is None else mean_kl(cpu.log_probabilities(), run.log_probabilities())
    return DeviceResult(device, tuple(_problems(run, kl)), False, right, len(KNOWN), kl, run)


def mean_kl(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return the mean KL divergence in nats of distributions (n, n_vocab), given as log-probabilities.

    Not-a-number where `found` has such, or is of another shape.
    """
    if expected.shape != found.shape:
        return float("nan")
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def _problems(run: DeviceRun, kl: float | None) -> Iterator[str]:
    yield from run.warnings
    for (instruction, known), found in zip(KNOWN.items(), run.answers, strict=True):
        if found != known:
            yield _("Asked {instruction} it answers {found!r} and should answer {known!r}.").format(
                instruction=instruction, found=found, known=known
            )
    if kl is not None and not kl <= MEAN_KL:  # not-a-number is beyond too
        yield _("Its distributions are {kl:.2g} nats (mean KL) from the CPU's; up to {limit:g} is rounding.").format(
            kl=kl, limit=MEAN_KL
        )


def _run(name: str, rpc: Sequence[str]) -> DeviceRun | own_process.Ended:
    answered = _ask(["--device", name, "--rpc", ",".join(rpc)])
    return answered if isinstance(answered, own_process.Ended) else DeviceRun.from_json(answered)


def _ask(options: Sequence[str]) -> dict[str, Any] | own_process.Ended:
    """The JSON that the command of a device's part prints as its last line, or how it ended without.

    Drivers may write to stdout too, and a process that ends badly after its last line has ended badly.
    """
    ended = own_process.run([COMMAND, *options], _SECONDS)
    if ended.error:
        return ended
    try:
        value = json.loads(ended.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        value = None
    if isinstance(value, dict):
        return value
    return own_process.Ended("", _("Its process prints {said!r}.").format(said=ended.stdout[-_LONGEST:]), crashed=False)
