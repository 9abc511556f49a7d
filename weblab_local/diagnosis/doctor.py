"""What `weblab-local doctor` finds out: this installation, this machine, the models, and whether one of them runs.

Whatever is missing or broken becomes a text in the report. llama.cpp may even end its process, on a processor or with
a driver that it was not compiled for; so a process of its own asks a model for a few tokens first.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path

import psutil

from weblab_local import __version__
from weblab_local.diagnosis import own_process
from weblab_local.diagnosis.findings import (
    Answer,
    DeviceMemory,
    Disk,
    LlamaCpp,
    ModelReport,
    Part,
    PlanSummary,
    Processor,
    Report,
    Versions,
)
from weblab_local.engine.engine import DEFAULT_N_CTX
from weblab_local.errors import NotEnoughMemory, WeblabError
from weblab_local.i18n import _
from weblab_local.llama.kv_types import KvType
from weblab_local.llama.processor import features
from weblab_local.machine import devices as machine
from weblab_local.machine.tuning import Choice, choose, processor, saved_setting, usable_cpus
from weblab_local.models import store

_ANSWER_SECONDS = 300
"""A model that has not answered after that is taken for one that does not."""

_QUESTION = "こんにちは"

_EXPECTED = (OSError, ValueError, WeblabError, subprocess.SubprocessError)
"""What looking at something that is missing or broken raises."""

_COMPUTE = 2**28
"""Bytes set aside for computing where no plan was made."""


def examine() -> Report:
    """Look at everything."""
    answer = ask(store.DEMO)
    llama_cpp = LlamaCpp(compiled_backends(), "", answer.error)
    commit = ggml = ""
    found: list[machine.Device] = []
    if not answer.crashed:
        llama_cpp, commit, ggml, found = _llama_cpp()
    models = tuple(_models(planned=not llama_cpp.error))
    if not answer.ok and not llama_cpp.error:
        fitting = [model for model in models if model.plan and model.path != str(store.demo_model())]
        if fitting:
            answer = ask(min(fitting, key=lambda model: model.size).path)
    ram = machine.ram()
    return Report(
        versions=Versions(
            weblab_local=__version__,
            llama_cpp_python=installed_version("llama-cpp-python"),
            llama_cpp=commit,
            ggml=ggml,
            python=platform.python_version(),
            os=platform.platform(),
        ),
        llama_cpp=llama_cpp,
        processor=_processor(),
        memory_total=ram.total,
        memory_available=ram.available,
        devices=tuple(
            DeviceMemory(device.name, device.description, device.kind, device.backend, device.free, device.total)
            for device in found
        ),
        cards=graphics_cards(),
        disk=_disk(),
        models=models,
        answer=answer,
        saved=saved_setting(),
    )


def ask(model: str) -> Answer:
    """Ask a model for a few tokens: `weblab-local generate` in a process of its own, or in this one if it has to be."""
    if not own_process.program():
        return _ask_here(model)
    options = ["--model", model, "--n-ctx", "256", "--max-tokens", "4", "--temperature", "0"]
    ended = own_process.run(["generate", *options, _QUESTION], _ANSWER_SECONDS)
    return Answer(model, ok=not ended.error, crashed=ended.crashed, error=ended.error)


def _ask_here(model: str) -> Answer:
    """The same in this process, which a crash of llama.cpp would end."""
    from weblab_local.engine.sampling import SamplingParams
    from weblab_local.models.loading import load

    try:
        with load(model, n_ctx=256) as engine:
            engine.generate(_QUESTION, SamplingParams(temperature=0, max_tokens=4))
    except Exception as error:  # whatever it is, it is said
        return Answer(model, ok=False, crashed=False, error=str(error) or type(error).__name__)
    return Answer(model, ok=True, crashed=False, error="")


def compiled_backends() -> tuple[str, ...]:
    """The backends whose libraries lie beside llama_cpp."""
    spec = util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return ()
    names = {file.name.partition(".")[0].removeprefix("lib") for file in (Path(spec.origin).parent / "lib").glob("*")}
    backends = {name.removeprefix("ggml-") for name in names if name.startswith("ggml-")} - {"base"}
    return tuple(sorted({"cpu" if backend.startswith("cpu") else backend for backend in backends}))


def graphics_cards(root: Path = Path("/")) -> tuple[str, ...]:
    """Makers of the graphics cards here: NVIDIA, AMD, Apple. Others are not advised to be used."""
    cards = set()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        cards.add("Apple")
    makers = {"0x10de": "NVIDIA", "0x1002": "AMD"}
    for file in root.glob("sys/class/drm/card*/device/vendor"):
        with suppress(*_EXPECTED):
            cards |= {makers[vendor] for vendor in [file.read_text().strip()] if vendor in makers}
    if any(root.glob("proc/driver/nvidia/gpus/*")) or _nvidia_smi_lists_one():
        cards.add("NVIDIA")
    return tuple(sorted(cards))


def _nvidia_smi_lists_one() -> bool:
    with suppress(*_EXPECTED):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=20)
        return listed.returncode == 0 and "GPU" in listed.stdout
    return False


def _llama_cpp() -> tuple[LlamaCpp, str, str, list[machine.Device]]:
    """llama.cpp, its commit, ggml's version, and the devices."""
    backends = compiled_backends()
    try:
        from weblab_local.llama import compatibility, ggml
        from weblab_local.llama.backends import cpu_variant, system_info

        info = system_info()
        found = machine.list_devices()
        switched_off = compatibility.switched_off()
    except Exception as error:  # a missing library, a wrong one, a driver that is too old: whatever it is, it is said
        text = str(error) or type(error).__name__
        if util.find_spec("llama_cpp") is None:
            text = _("llama-cpp-python is not installed.")
        return LlamaCpp(backends, "", text), "", "", []
    texts = {}
    for name in ("ggml_commit", "ggml_version"):
        try:
            texts[name] = ggml.function(name, ggml.TEXT)().decode("utf-8", errors="replace")
        except AttributeError:
            texts[name] = ""
    return LlamaCpp(backends, info, "", cpu_variant(), switched_off), texts["ggml_commit"], texts["ggml_version"], found


def installed_version(package: str) -> str:
    """The version of a package that is installed; "" where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> Processor:
    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    threads = machine.physical_cores()
    performance = machine.linux_cores(set(range(logical))) if sys.platform == "linux" else threads
    return Processor(
        name=processor(),
        logical=logical,
        physical=physical,
        performance=performance or physical,
        usable=usable_cpus(),
        quota=machine.cpu_quota(),
        threads=choose().n_threads or threads,
        features=tuple(sorted(features())),
    )


def _disk() -> Disk:
    folder = store.models_dir()
    existing = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path("/"))
    try:
        usage = shutil.disk_usage(existing)
    except OSError:
        return Disk(str(folder), 0, 0)
    return Disk(str(folder), usage.free, usage.total)


def _models(*, planned: bool) -> Iterator[ModelReport]:
    default = None
    with suppress(*_EXPECTED):
        default = store.find_model()
    stored: list[store.StoredModel] = []
    with suppress(*_EXPECTED):
        stored = store.stored_models()
    for model in stored:
        size, mixture = 0, ""
        with suppress(*_EXPECTED):
            size, mixture = model.size, model.mixture
        report = ModelReport(model.name, str(model.path), size, mixture, model.path == default, bool(model.manifest))
        yield _with_plan(report) if planned else report
    demo = store.demo_model()
    report = ModelReport(store.DEMO, str(demo), demo.stat().st_size if demo.is_file() else 0, "Q8_0", False, False)
    yield _with_plan(report) if planned else report


def _with_plan(model: ModelReport) -> ModelReport:
    """The report with the plan that `load` would follow, or with what speaks against it."""
    choice = choose()
    path = Path(model.path)
    try:
        return replace(model, fits=True, plan=summary(path, choice))
    except NotEnoughMemory as error:
        options, smaller = _what_fits(path, choice)
        return replace(model, fits=False, error=str(error), fitting_options=options, smaller=smaller)
    except WeblabError as error:
        return replace(model, error=str(error))
    except Exception as error:  # a header that makes no sense in a way nobody foresaw
        return replace(model, error=f"{type(error).__name__}: {error}")


def summary(path: Path, choice: Choice, n_ctx: int = DEFAULT_N_CTX) -> PlanSummary:
    """The plan for a GGUF. Raises what `loading.plan` raises."""
    from weblab_local.models.loading import plan

    planned = plan(
        path,
        n_ctx=n_ctx,
        kv_type=choice.kv_type,
        flash_attention=choice.flash_attention,
        repack=choice.repack,
        n_batch=choice.n_batch,
    )
    return PlanSummary(
        n_layers=planned.n_layer + 1,
        n_gpu_layers=planned.n_gpu_layers,
        n_ctx=planned.n_ctx,
        kv_type=planned.kv_type,
        flash_attention=planned.flash_attention,
        total=planned.total,
        parts=tuple(Part(share.device, share.n_layers, share.total) for share in (planned.cpu, *planned.offloaded)),
        reasons=tuple(planned.reasons),
    )


def _what_fits(path: Path, choice: Choice) -> tuple[str, str]:
    """Options that make a model fit, the gentlest first, and a mixture that would without; "" where there is none."""
    from weblab_local.llama.gguf_header import read_header
    from weblab_local.machine.footprint import Shape, kv_bytes

    tries: Mapping[str, tuple[KvType, int]] = {
        "--kv-type q8_0": ("q8_0", DEFAULT_N_CTX),
        "--kv-type q8_0 --n-ctx 1024": ("q8_0", 1024),
        "--kv-type q4_0 --n-ctx 512": ("q4_0", 512),
    }
    options = ""
    for text, (kv_type, n_ctx) in tries.items():
        with suppress(*_EXPECTED):
            summary(path, replace(choice, kv_type=kv_type, flash_attention=True), n_ctx)
            options = text
            break
    header = read_header(path)
    shape, weights = Shape.of(header), sum(tensor.nbytes for tensor in header.tensors.values())
    kv = kv_bytes(shape, "f16", DEFAULT_N_CTX, shape.n_layer)
    return options, smaller_mixture(shape.n_weights, kv, machine.ram().available, weights)


def smaller_mixture(n_weights: int, kv: int, available: int, below: int) -> str:
    """The best mixture that is smaller than `below` bytes and fits with `kv` bytes of KV cache; "" for none."""
    from weblab_local.machine.plan import BITS

    room = min(0.97 * below, available - kv - _COMPUTE)
    return next((mixture for mixture, bits in BITS.items() if n_weights * bits / 8 < room), "")
