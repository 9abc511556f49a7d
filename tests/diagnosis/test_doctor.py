"""`weblab-local doctor`: what it says of this machine, and what it advises on others."""

import importlib.metadata
import json
import os
import platform
import struct
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from convert import install
from tests.support.conversions import ROOT
from weblab_local.cli.doctor import sections
from weblab_local.diagnosis import doctor as examination
from weblab_local.diagnosis.advice import Advice, advise
from weblab_local.diagnosis.doctor import graphics_cards, smaller_mixture
from weblab_local.diagnosis.findings import (
    Answer,
    DeviceMemory,
    Disk,
    LlamaCpp,
    ModelReport,
    Processor,
    Report,
    Versions,
)
from weblab_local.errors import NotEnoughMemory
from weblab_local.llama import compatibility
from weblab_local.machine import tuning
from weblab_local.models.store import demo_model, models_dir

GB = 10**9
CPU = DeviceMemory("CPU", "some processor", "cpu", "CPU", 30 * GB, 32 * GB)
GPU = DeviceMemory("CUDA0", "some card", "gpu", "CUDA", 11 * GB, 12 * GB)
MODEL = ModelReport("weblab-Q4_K_M", "/store/weblab-Q4_K_M.gguf", 6 * GB, "Q4_K_M", True, True, fits=True)
DEMO = ModelReport("demo", "/demo.gguf", 5_000_000, "Q8_0", False, False, fits=True)
WELL = Report(
    versions=Versions("0.1.0", "0.3.36", "0c1e570", "0.25.3", "3.12.1", "Linux"),
    llama_cpp=LlamaCpp(("cpu", "rpc"), "CPU : AVX2 = 1", ""),
    processor=Processor("some processor", 16, 8, 8, 16, None, 8, ("AVX2",)),
    memory_total=32 * GB,
    memory_available=30 * GB,
    devices=(CPU,),
    cards=(),
    disk=Disk("/store", 100 * GB, 500 * GB),
    models=(MODEL, DEMO),
    answer=Answer("demo", ok=True, crashed=False, error=""),
    saved=None,
)


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weblab_local", "--lang", "en", "doctor", *arguments]
    variables = os.environ | {"PYTHONIOENCODING": "utf-8", "LANG": "C.UTF-8"} | environment
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=variables, check=False)


def report_in_json(**environment: str) -> dict[str, Any]:
    done = doctor("--json", **environment)
    assert done.stderr == ""
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def store(name: str, content: bytes) -> Path:
    models_dir().mkdir(parents=True, exist_ok=True)
    path = models_dir() / f"{name}.gguf"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of this machine with an empty store."""
    return report_in_json(WEBLAB_LOCAL_HOME=str(tmp_path_factory.mktemp("home")))


def test_the_versions_are_those_that_are_installed(here: Mapping[str, Any]) -> None:
    versions = here["versions"]
    assert versions["llama_cpp_python"] == importlib.metadata.version("llama-cpp-python")
    assert (versions["python"], versions["os"]) == (platform.python_version(), platform.platform())
    assert here["llama_cpp"]["error"] == ""


def test_the_backends_are_the_libraries_that_lie_beside_llama_cpp(here: Mapping[str, Any]) -> None:
    assert "cpu" in here["llama_cpp"]["backends"]
    assert "base" not in here["llama_cpp"]["backends"]


def test_the_machine_is_what_psutil_says(here: Mapping[str, Any]) -> None:
    assert here["memory_total"] <= psutil.virtual_memory().total
    assert here["processor"]["logical"] == psutil.cpu_count()
    assert here["processor"]["physical"] == psutil.cpu_count(logical=False)
    assert 1 <= here["processor"]["threads"] <= here["processor"]["usable"] <= here["processor"]["logical"]
    assert here["disk"]["total"] == psutil.disk_usage(str(Path(here["disk"]["folder"]).parents[1])).total


def test_the_json_keeps_its_keys(here: Mapping[str, Any]) -> None:
    assert set(here) == {
        *("versions", "llama_cpp", "processor", "memory_total", "memory_available", "devices", "cards", "disk"),
        *("models", "answer", "saved", "can_run", "advice"),
    }
    assert set(here["versions"]) == {"weblab_local", "llama_cpp_python", "llama_cpp", "ggml", "python", "os"}
    assert set(here["devices"][0]) == {"name", "description", "kind", "backend", "free", "total"}
    assert set(here["models"][0]) == {
        *("name", "path", "size", "mixture", "is_default", "has_manifest", "plan", "fits", "error"),
        *("fitting_options", "smaller"),
    }
    assert set(here["models"][0]["plan"]) == {
        *("n_layers", "n_gpu_layers", "n_ctx", "kv_type", "flash_attention", "total", "parts", "reasons"),
    }
    assert set(here["advice"][0]) == {"code", "problem", "command"}


def test_the_demo_is_planned_and_answers(here: Mapping[str, Any]) -> None:
    (demo,) = here["models"]
    assert (demo["name"], demo["fits"], demo["size"]) == ("demo", True, demo_model().stat().st_size)
    assert sum(part["n_layers"] for part in demo["plan"]["parts"]) == demo["plan"]["n_layers"]
    assert here["answer"] == {"model": "demo", "ok": True, "crashed": False, "error": ""}
    assert here["can_run"]


def test_an_empty_store_is_advised_to_be_filled_and_is_no_failure() -> None:
    done = doctor()
    assert (done.returncode, done.stderr) == (0, "")
    assert "make convert" in done.stdout
    assert importlib.metadata.version("llama-cpp-python") in done.stdout


def test_damaged_models_in_the_store_are_reported_beside_the_whole_ones() -> None:
    whole = demo_model().read_bytes()
    store("whole", whole)
    store("truncated", whole[:1_000_000])
    store("empty", b"")
    # ggml ends the process when it is asked for rows that are no whole blocks.
    at = whole.index(b"gptneox.embedding_length") + len(b"gptneox.embedding_length") + 4
    store("nonsense", whole[:at] + struct.pack("<I", 100) + whole[at + 4 :])
    store("garbled", whole.replace(b"blk.0.attn_qkv.bias", b"blk.0.attn_qkv.\xff\xfe\xfd\xfc"))
    (models_dir() / "gone.gguf").symlink_to(models_dir() / "nowhere")
    found = report_in_json()
    damaged = {model["name"] for model in found["models"] if model["error"]}
    advised = [one for one in found["advice"] if one["code"] == "model-damaged"]
    assert damaged == {"truncated", "empty", "nonsense", "garbled", "gone"}
    assert {one["command"].split()[3] for one in advised} == damaged
    assert [model["name"] for model in found["models"] if model["fits"]] == ["whole", "demo"]


def test_without_llama_cpp_it_says_so_and_fails(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('libcuda.so.1: cannot open shared object file')\n")
    done = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (1, "")
    assert "libcuda.so.1" in done.stdout
    assert "Traceback" not in done.stdout
    assert "make install" in done.stdout


def test_a_llama_cpp_that_ends_the_process_does_not_end_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("import os\nos.abort()\n")
    done = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (1, "")
    assert "uninstall" in done.stdout


def codes(report: Report) -> list[str]:
    return [one.code for one in advise(report)]


def command(report: Report, code: str) -> str:
    return next(one.command for one in advise(report) if one.code == code)


def test_a_machine_where_all_is_well_gets_no_advice() -> None:
    assert advise(WELL) == []
    assert dict(sections(WELL, []))["What to change"] == ["Nothing."]


@pytest.mark.parametrize(("card", "backend"), [("NVIDIA", "cuda"), ("AMD", "vulkan"), ("Apple", "metal")])
def test_a_graphics_card_that_the_build_cannot_use(card: str, backend: str) -> None:
    assert command(replace(WELL, cards=(card,)), "gpu-backend-missing") == f"make install BACKEND={backend}"
    assert backend in install.BACKENDS
    compiled = LlamaCpp(("cpu", backend, "rpc"), "", "")
    assert codes(replace(WELL, cards=(card,), llama_cpp=compiled, devices=(CPU, GPU))) == []


def test_a_build_for_a_graphics_card_that_is_not_found() -> None:
    assert codes(replace(WELL, llama_cpp=LlamaCpp(("cpu", "cuda"), "", ""))) == ["gpu-not-found"]


def test_no_model_yet_on_machines_of_several_sizes() -> None:
    empty = replace(WELL, models=(DEMO,))
    assert command(empty, "no-model") == "make convert"
    assert command(replace(empty, memory_available=8 * GB), "no-model") == "make convert"
    assert command(replace(empty, memory_available=7 * GB), "no-model") == "make convert QUANT=W3"
    small = replace(empty, memory_available=6 * GB)
    assert command(small, "no-model") == "make convert QUANT=W3"
    assert "--kv-type q8_0" in next(one.problem for one in advise(small))
    in_pieces = replace(empty, memory_available=8 * GB, disk=Disk("/store", 20 * GB, 50 * GB))
    assert command(in_pieces, "no-model") == "make convert QUANT=Q3_K_M LOW_DISK=1"
    assert command(replace(empty, disk=Disk("/store", 20 * GB, 50 * GB)), "no-model") == "make convert LOW_DISK=1"


def test_a_default_model_that_is_too_large() -> None:
    large = replace(MODEL, fits=False, error="It needs more.", fitting_options="--kv-type q8_0", smaller="IQ4_XS")
    report = replace(WELL, models=(large, DEMO))
    assert command(report, "memory-kv-cache") == "weblab-local chat --kv-type q8_0"
    assert command(report, "memory-smaller-model") == "make convert QUANT=IQ4_XS"
    hopeless = replace(large, fitting_options="", smaller="")
    assert codes(replace(WELL, models=(hopeless, DEMO))) == ["memory-too-small"]
    assert codes(replace(WELL, models=(replace(large, is_default=False), MODEL, DEMO))) == []


def test_threads_that_affinity_or_control_groups_hold_back() -> None:
    assert codes(replace(WELL, processor=replace(WELL.processor, usable=4))) == ["threads-affinity"]
    assert codes(replace(WELL, processor=replace(WELL.processor, quota=2.0))) == ["threads-quota"]
    assert codes(replace(WELL, processor=replace(WELL.processor, quota=12.0))) == []


@pytest.mark.parametrize("version", ["0.3.34", "0.3.37", "0.4.0", "1.0", "", "unknown"])
def test_a_llama_cpp_python_outside_of_the_tested_range(version: str) -> None:
    assert codes(replace(WELL, versions=replace(WELL.versions, llama_cpp_python=version))) == ["llama-cpp-version"]


def test_the_tested_range_is_the_one_that_pip_and_the_installer_know() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest, below = (".".join(map(str, version)) for version in (install.OLDEST, install.BELOW))
    assert f"llama-cpp-python>={oldest},<{below}" in project["dependencies"]
    assert (min(compatibility.RPC_PROTOCOLS), compatibility.BELOW) == (install.OLDEST, install.BELOW)
    assert compatibility.is_tested(importlib.metadata.version("llama-cpp-python"))


def test_a_disk_that_is_nearly_full() -> None:
    full = replace(WELL, disk=Disk("/store", GB // 10, 500 * GB))
    assert codes(full) == ["disk-full"]
    other = replace(MODEL, name="old one", is_default=False)
    assert command(replace(full, models=(other, MODEL, DEMO)), "disk-full") == "weblab-local models rm 'old one'"


def test_llama_cpp_missing_or_broken() -> None:
    nothing = replace(WELL.versions, llama_cpp_python="")
    missing = replace(WELL, versions=nothing, llama_cpp=LlamaCpp((), "", "not installed"), cards=("NVIDIA",))
    assert command(missing, "llama-cpp-missing") == "make install"
    broken = replace(WELL, llama_cpp=LlamaCpp(("cpu",), "", "Illegal instruction"), cards=("NVIDIA",))
    assert codes(broken) == ["llama-cpp-broken"]


def test_what_is_switched_off_with_this_llama_cpp() -> None:
    report = replace(WELL, llama_cpp=replace(WELL.llama_cpp, switched_off=("No repacking.",)))
    assert [(one.code, one.problem) for one in advise(report)] == [("llama-cpp-structures", "No repacking.")]
    assert report.can_run


@pytest.mark.parametrize(("version", "said"), [("0.3.36", "0.3.36 (tested)"), ("0.3.34", "0.3.34 (not tested)")])
def test_whether_this_llama_cpp_python_was_tested_is_said(version: str, said: str) -> None:
    report = replace(WELL, versions=replace(WELL.versions, llama_cpp_python=version))
    assert f"llama-cpp-python {said}, llama.cpp" in dict(sections(report, []))["Installation"][1]


def test_nothing_that_answers() -> None:
    report = replace(WELL, answer=Answer("demo", ok=False, crashed=False, error="no such file"))
    assert not report.can_run
    assert codes(report) == ["no-answer"]


def test_every_finding_can_be_printed() -> None:
    large = replace(MODEL, fits=False, error="It needs more.\nTake less.")
    report = replace(WELL, models=(large, DEMO), devices=(CPU, GPU), cards=("NVIDIA",), saved=tuning.Setting(4))
    lines = [line for _, section in sections(report, [Advice("x", "a [problem]", "a command")]) for line in section]
    text = "\n".join(lines)
    for said in ("CUDA0", "some card", "It needs more.", "a [problem]", "a command", "weblab-Q4_K_M", "AVX2"):
        assert said in text


def test_a_model_that_does_not_fit_comes_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_f16(_path: Path, choice: tuning.Choice, *_n_ctx: int) -> Any:
        if choice.kv_type == "f16":
            raise NotEnoughMemory("It needs more.")

    monkeypatch.setattr(examination, "summary", refuse_f16)
    demo = examination._with_plan(replace(DEMO, path=str(demo_model())))
    assert (demo.fits, demo.fitting_options, demo.smaller) == (False, "--kv-type q8_0", "Q6_K")


@pytest.mark.parametrize(
    ("available", "mixture"), [(20 * GB, "Q6_K"), (9.2 * GB, "Q4_K_M"), (8 * GB, "W4"), (7 * GB, "W3"), (5 * GB, "")]
)
def test_a_smaller_mixture_of_the_10b(available: float, mixture: str) -> None:
    assert smaller_mixture(10_710_000_000, int(1.44 * GB), int(available), below=11 * GB) == mixture


def test_graphics_cards_are_found_by_what_linux_says_of_them(tmp_path: Path) -> None:
    for number, vendor in enumerate(["0x10de", "0x1002", "0x8086", "0x1af4"]):
        folder = tmp_path / f"sys/class/drm/card{number}/device"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
    assert {"NVIDIA", "AMD"} <= set(graphics_cards(tmp_path)) <= {"NVIDIA", "AMD", "Apple"}


def test_in_a_frozen_program_the_executable_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyInstaller sets sys.frozen, and sys.executable is the program: here the script that pip makes of it."""
    monkeypatch.setattr(sys, "executable", str(Path(sys.executable).with_name("weblab-local")))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert examination.ask("demo").ok
