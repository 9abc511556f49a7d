"""What to change, after a doctor's report: pure functions from findings to sentences with a command each."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from weblab_local.diagnosis.findings import ModelReport, Report
from weblab_local.i18n import _
from weblab_local.llama.compatibility import is_tested, untested
from weblab_local.shell import quoted

_BACKENDS = {"NVIDIA": ("cuda", "vulkan"), "AMD": ("vulkan", "hip"), "Apple": ("metal",)}
"""Backends that use a maker's graphics cards, the one to install first."""

_GPU_BACKENDS = {"cuda": "nvidia-smi", "vulkan": "vulkaninfo --summary", "hip": "rocminfo"}
"""Backends of graphics cards that need a driver, and the command that shows whether there is one."""

CONVERSION_DISK = 30 * 10**9
"""Bytes that a conversion of the 10B takes: its checkpoint (21.4 GB) and the model."""

SCARCE_DISK = 10**9
"""Bytes free under which a disk is nearly full: sessions, settings and partial files no longer find room."""

MODEL_MEMORY = {"Q4_K_M": 8.6e9, "W4": 7.9e9, "Q3_K_M": 7.4e9, "W3": 6.7e9}
"""Bytes of memory that the 10B takes with 2048 tokens of context."""

SMALLEST_WITH_Q8_0 = 6.0e9
"""The same for W3 when the KV cache is in q8_0."""


@dataclass(frozen=True)
class Advice:
    """One thing to change. `code` stays the same in all languages and versions; `command` may be ""."""

    code: str
    problem: str
    command: str


def advise(report: Report) -> list[Advice]:
    """What to change, the most important first."""
    return [*_installation(report), *_devices(report), *_models(report), *_threads(report), *_disk(report)]


def _installation(report: Report) -> Iterator[Advice]:
    version = report.versions.llama_cpp_python
    if not version and not report.llama_cpp.backends:
        yield Advice("llama-cpp-missing", _("llama-cpp-python is not installed."), "make install")
    elif report.llama_cpp.error:
        uninstall = quoted(sys.executable or "python", "-m", "pip", "uninstall", "--yes", "llama-cpp-python")
        yield Advice(
            "llama-cpp-broken",
            _("llama.cpp does not run here; it may have been compiled for another processor or driver."),
            f"{uninstall} && make install",
        )
    elif not is_tested(version):
        yield Advice(
            "llama-cpp-version",
            untested(version),
            "make install",
        )
    elif not report.answer.ok:
        yield Advice(
            "no-answer",
            _("No model gives an answer: {error}").format(error=report.answer.error),
            "weblab-local generate --model demo hello",
        )
    for sentence in report.llama_cpp.switched_off:
        yield Advice("llama-cpp-structures", sentence, "make install")


def _devices(report: Report) -> Iterator[Advice]:
    if report.llama_cpp.error:
        return
    compiled = set(report.llama_cpp.backends)
    for card in report.cards:
        backends = _BACKENDS.get(card, ())
        if backends and not compiled & set(backends):
            yield Advice(
                "gpu-backend-missing",
                _(
                    "There is a graphics card here ({card}), and llama.cpp was compiled without a backend for it."
                ).format(card=card),
                f"make install BACKEND={backends[0]}",
            )
    for backend, command in _GPU_BACKENDS.items():
        if backend in compiled and not any(device.kind in ("gpu", "igpu") for device in report.devices):
            yield Advice(
                "gpu-not-found",
                _(
                    "llama.cpp was compiled for {backend} and finds no device there: is the driver installed and new "
                    "enough? The CPU computes."
                ).format(backend=backend),
                command,
            )


def _models(report: Report) -> Iterator[Advice]:
    stored = [model for model in report.models if model.name != "demo"]
    for model in stored:
        if model.error and model.fits is None:
            yield Advice(
                "model-damaged",
                _("The model {name} cannot be used: {error}").format(name=model.name, error=model.error.split("\n")[0]),
                f"weblab-local models rm {quoted(model.name)} && make convert",
            )
    if not stored:
        yield _first_model(report)
    for model in stored:
        if model.is_default and model.fits is False:
            yield from _too_large(model)


def _first_model(report: Report) -> Advice:
    options = []
    problem = _("There is no model yet but the demo.")
    piece_by_piece = 0 < report.disk.free < CONVERSION_DISK
    # W4 and W3 read the checkpoint twice, and piece by piece none of it is kept
    default, mixture = ("Q4_K_M", "Q3_K_M") if piece_by_piece else ("W4", "W3")
    if report.memory_available < MODEL_MEMORY[default]:
        problem += " " + _(
            "{size} of memory are available, too little for {default}: {mixture} needs {needed}."
        ).format(
            size=f"{report.memory_available / 1e9:.1f} GB",
            default=default,
            mixture=mixture,
            needed=f"{MODEL_MEMORY[mixture] / 1e9:.1f} GB",
        )
        if mixture == "W3" and report.memory_available < MODEL_MEMORY["W3"]:
            problem += " " + _("With --kv-type q8_0 it needs {needed}.").format(
                needed=f"{SMALLEST_WITH_Q8_0 / 1e9:.1f} GB"
            )
        options.append(f"QUANT={mixture}")
    if piece_by_piece:
        problem += " " + _("With {size} free on the disk, the checkpoint is better fetched piece by piece.").format(
            size=f"{report.disk.free / 1e9:.1f} GB"
        )
        options.append("LOW_DISK=1")
    return Advice("no-model", problem, " ".join(["make convert", *options]))


def _too_large(model: ModelReport) -> Iterator[Advice]:
    problem = _("The default model does not fit: {error}").format(error=model.error.split("\n")[0])
    if model.fitting_options:
        yield Advice("memory-kv-cache", problem, f"weblab-local chat {model.fitting_options}")
    if model.smaller:
        yield Advice(
            "memory-smaller-model",
            _("In {mixture} the model would fit.").format(mixture=model.smaller)
            if model.fitting_options
            else problem + " " + _("In {mixture} it would.").format(mixture=model.smaller),
            f"make convert QUANT={model.smaller}",
        )
    if not model.fitting_options and not model.smaller:
        yield Advice("memory-too-small", problem, "weblab-local chat --model demo")


def _threads(report: Report) -> Iterator[Advice]:
    cpu = report.processor
    if cpu.usable < min(cpu.logical, cpu.performance):
        yield Advice(
            "threads-affinity",
            _("This process may use {usable} of {logical} CPUs (its affinity); {cores} cores would compute.").format(
                usable=cpu.usable, logical=cpu.logical, cores=cpu.performance
            ),
            f"taskset --cpu-list 0-{cpu.logical - 1} weblab-local chat",
        )
    if cpu.quota is not None and cpu.quota < min(cpu.usable, cpu.performance):
        yield Advice(
            "threads-quota",
            _("The control group grants {quota:.1f} CPUs' worth of time; {cores} cores would compute.").format(
                quota=cpu.quota, cores=cpu.performance
            ),
            f"docker update --cpus {cpu.performance} CONTAINER",
        )


def _disk(report: Report) -> Iterator[Advice]:
    stored = [model for model in report.models if model.name != "demo"]
    if stored and report.disk.total and report.disk.free < SCARCE_DISK:
        others = [model for model in stored if not model.is_default]
        yield Advice(
            "disk-full",
            _("The disk of {folder} is nearly full: {size} are free.").format(
                folder=report.disk.folder, size=f"{report.disk.free / 1e9:.2f} GB"
            ),
            f"weblab-local models rm {quoted(others[0].name)}" if others else "hf cache ls",
        )
