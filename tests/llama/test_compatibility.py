"""A llama.cpp other than the one that was tested is found out before it computes anything, and said plainly."""

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from gguf import GGMLQuantizationType
from llama_cpp import llama_cpp as lib

from convert.quantization import dequantize
from weblab_local import SamplingParams, load
from weblab_local.diagnosis import doctor
from weblab_local.diagnosis.advice import advise
from weblab_local.errors import WeblabError, WorkerError
from weblab_local.llama import compatibility, ggml
from weblab_local.llama.gguf_header import read_header
from weblab_local.llama.structures import TypeTraits
from weblab_local.machine import devices, rpc
from weblab_local.machine.placement import Placement, read_placement
from weblab_local.machine.plan import make_plan
from weblab_local.machine.repack import repacked
from weblab_local.models.loading import offload_warnings
from weblab_local.models.store import demo_model


def forget() -> None:
    compatibility.require.cache_clear()
    compatibility.fits.cache_clear()


@pytest.fixture(autouse=True)
def _asked_again() -> Iterator[None]:
    forget()
    yield
    forget()


def test_the_library_that_is_installed_fits() -> None:
    assert compatibility.require() == ()


def test_the_rpc_protocol_is_the_headers() -> None:
    header = Path(llama_cpp.__file__).parents[1] / "include" / "ggml-rpc.h"
    if not header.is_file():
        pytest.skip("llama-cpp-python brought no headers along")
    text = header.read_text()
    numbers = [re.search(rf"RPC_PROTO_{part}_VERSION +(\d+)", text) for part in ("MAJOR", "MINOR")]
    assert tuple(int(number[1]) for number in numbers if number) == compatibility.rpc_protocol()


def test_a_version_that_was_not_tested_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "__version__", "0.3.99")
    (sentence,) = compatibility.require()
    assert "0.3.99 was not tested" in sentence
    with pytest.raises(WorkerError, match="RPC protocol"):
        rpc.register(["127.0.0.1:1"])


def without_the_first(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _n_vocab, *arguments: original(_n_vocab, arguments[0], arguments[1], arguments[3], arguments[2])


def of_four(_last: int, _repeat: float, _frequency: float, _presence: float) -> None:
    """As llama.cpp had it before."""


@pytest.mark.parametrize("other", [without_the_first(lib.llama_sampler_init_penalties), of_four])
def test_penalties_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch, other: Callable[..., Any]) -> None:
    monkeypatch.setattr(lib, "llama_sampler_init_penalties", other)
    with pytest.raises(WeblabError, match="llama_sampler_init_penalties"):
        compatibility.require()


class _Later(ctypes.Structure):
    """A `ggml_tensor` that begins with something new."""

    _fields_ = (("new", ctypes.c_int64), ("type", ctypes.c_int), ("buffer", ctypes.c_void_p))


class _LaterTraits(ctypes.Structure):
    _fields_ = (("new", ctypes.c_int64), *TypeTraits._fields_)


class _LaterGguf(ctypes.Structure):
    """A `gguf_init_params` with something new, which is NULL, where the place for the tensors was."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("new", ctypes.c_void_p))

    def __init__(self, no_alloc: bool, _ctx: int) -> None:
        super().__init__(no_alloc, None)


def test_a_structure_that_every_model_needs_is_refused_where_it_was_laid_out_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compatibility, "GgufInit", _LaterGguf)
    with pytest.raises(WeblabError, match="gguf_init_params"):
        compatibility.require()


def test_without_known_tensors_models_run_and_the_plan_counts_them_as_they_lie_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compatibility, "TensorStart", _Later)
    header = read_header(demo_model())
    cpu = next(device for device in devices.list_devices() if device.kind == "cpu")
    assert repacked(header, cpu.handle) == {}
    with load("demo", n_ctx=256) as model:
        (warning,) = model.warnings
        assert "memory plan" in warning
        assert model.generate("こんにちは", SamplingParams(temperature=0, max_tokens=4)).token_ids


def test_without_known_types_models_run_and_conversions_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "TypeTraits", _LaterTraits)
    (warning,) = compatibility.require()
    assert "conversions" in warning
    with load("demo", n_ctx=256) as model:
        assert model.warnings == [warning]
    dequantize._traits.cache_clear()
    with pytest.raises(WeblabError, match="ggml_type_traits"):
        dequantize.block_size(GGMLQuantizationType.Q8_0)


def test_the_doctor_says_what_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "TensorStart", _Later)
    report = doctor.examine()
    (said,) = report.llama_cpp.switched_off
    assert [one.problem for one in advise(report) if one.code == "llama-cpp-structures"] == [said]


def test_a_function_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib, "llama_context_default_params", lambda: object())
    with pytest.raises(WeblabError, match="llama_context_params"):
        read_header(demo_model())


def test_devices_of_a_new_type_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ggml.function

    def function(name: str, *types: Any) -> Callable[..., Any]:
        return (lambda _handle: 4) if name == "ggml_backend_dev_type" else original(name, *types)

    monkeypatch.setattr(ggml, "function", function)
    assert devices.list_devices() == []


def test_where_layers_are_is_unknown_when_the_log_does_not_say() -> None:
    cpu = next(device for device in devices.list_devices() if device.kind == "cpu")
    card = devices.Device("CUDA0", "a card", "gpu", "CUDA", 2**33, 2**33, 1, "CUDA0", host_buffer="CUDA_Host")
    plan = make_plan(read_header(demo_model()), [cpu, card], 2**33, n_ctx=2048)
    (warning,) = offload_warnings(plan, read_placement(["load_tensors: CUDA0 weights: 5 MiB"]))
    assert "unknown" in warning
    assert "run on the CPU" not in warning
    (warning,) = offload_warnings(plan, Placement(weights={"CPU": 1}, kv={}, compute={}))
    assert "run on the CPU" in warning
