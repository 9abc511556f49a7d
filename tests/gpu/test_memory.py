"""Memory: the plan beside llama.cpp's own report, devices that are too small or full, two devices."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter

from tests.gpu.support import LAYERS, Target, with_memory
from tests.support.engines import GREEDY, SHORT_ANSWERS, is_response
from tests.support.plans import assert_as_planned, assert_planned_for_a_helper
from tests.support.workers import started_worker
from weblab_local.engine.engine import Engine
from weblab_local.errors import ModelFileError, NotEnoughMemory
from weblab_local.llama import ggml
from weblab_local.llama.ggml import POINTER, SIZE
from weblab_local.llama.gguf_header import read_header
from weblab_local.machine.devices import Device
from weblab_local.machine.offload import MARGIN
from weblab_local.machine.plan import make_plan
from weblab_local.models import loading
from weblab_local.models.store import demo_model

GIB = 2**30
PAIR = SHORT_ANSWERS[60]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_gpu_layers": 1},
        {"n_gpu_layers": 3},
        {"n_ctx": 8192, "n_parallel": 4},
        {"n_gpu_layers": 3, "n_ctx": 8192, "n_parallel": 4},
        {"kv_type": "q8_0"},
        {"kv_type": "q4_0", "n_gpu_layers": 1},
        {"kv_type": "q4_0", "n_gpu_layers": 3, "n_ctx": 4096},
        {"flash_attention": False},
        {"flash_attention": False, "n_gpu_layers": 3, "n_ctx": 4096},
    ],
    ids=str,
)
@pytest.mark.parametrize("quant", ["F16", "Q4_K_M"])
def test_llama_cpp_takes_what_was_planned(
    quant: str, options: dict[str, Any], target: Target, demos: Mapping[str, Path]
) -> None:
    with target.load(demos[quant], **options) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        is_helping = target.helps_the_cpu and engine.plan.n_gpu_layers < LAYERS
        (assert_planned_for_a_helper if is_helping else assert_as_planned)(engine.plan, engine.placement)
        assert engine.warnings == []


def test_two_devices_share_the_layers(target: Target, second: str) -> None:
    with target.load("demo", with_worker=second) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        assert len(engine.plan.devices) == 2
        assert sum(engine.plan.tensor_split) == LAYERS
        assert_as_planned(engine.plan, engine.placement)
        assert is_response(engine.generate(PAIR.instruction, GREEDY), PAIR)


@pytest.mark.parametrize("n_gpu_layers", [3, 4])
def test_two_devices_and_the_cpu_share_the_layers(n_gpu_layers: int, target: Target, second: str) -> None:
    with target.load("demo", with_worker=second, n_gpu_layers=n_gpu_layers) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        compare = assert_planned_for_a_helper if target.helps_the_cpu else assert_as_planned
        compare(engine.plan, engine.placement)
        assert is_response(engine.generate(PAIR.instruction, GREEDY), PAIR)


def large_model(path: Path, layers: int) -> Path:
    """A GGUF with the demo's vocabulary and layers of the 10B's width in Q8_0: 0.3 GB each, of zeros, on no disk."""
    n_embd, n_ff = 4864, 19456
    demo = GGUFReader(demo_model())
    n_vocab = len(demo.fields["tokenizer.ggml.tokens"].data)
    changed = {"block_count": layers, "embedding_length": n_embd, "feed_forward_length": n_ff}
    changed |= {"attention.head_count": 38}
    writer = GGUFWriter(path, "gptneox")
    for name, field in demo.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = changed.get(name.removeprefix("gptneox."), field.contents())
            writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, n_embd), "output.weight": (n_vocab, n_embd)}
    shapes |= {f"output_norm.{part}": (n_embd,) for part in ("weight", "bias")}
    matrices = {"attn_qkv": (3 * n_embd, n_embd), "attn_output": (n_embd, n_embd)}
    matrices |= {"ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}
    for layer in range(layers):
        for matrix, (rows, columns) in matrices.items():
            shapes |= {f"blk.{layer}.{matrix}.weight": (rows, columns), f"blk.{layer}.{matrix}.bias": (rows,)}
        for norm in ("attn_norm", "ffn_norm"):
            shapes |= {f"blk.{layer}.{norm}.{part}": (n_embd,) for part in ("weight", "bias")}
    data = 0
    for name, shape in shapes.items():
        kind = GGMLQuantizationType.Q8_0 if len(shape) == 2 else GGMLQuantizationType.F32
        block, n_bytes = GGML_QUANT_SIZES[kind]
        n_bytes = math.prod(shape) // block * n_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
        data += GGUFWriter.ggml_pad(n_bytes, 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(GGUFWriter.ggml_pad(path.stat().st_size, 32) + data)
    return path


@pytest.fixture(scope="module")
def too_large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 3 GiB."""
    return large_model(tmp_path_factory.mktemp("large") / "large.gguf", layers=10)


def test_a_model_that_is_larger_than_the_device_is_offloaded_in_part(
    target: Target, too_large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mesa's software device has 2 GiB; a larger one is told to have no more free."""
    found = target.devices()
    free = min(2 * GIB, target.device().free)
    monkeypatch.setattr(loading, "list_devices", lambda _rpc=(): with_memory(found, free))
    with target.load(too_large, n_gpu_layers="auto", n_ctx=512, repack=False) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        (share,) = engine.plan.offloaded
        assert 0 < share.n_layers < 11
        assert share.total <= free - MARGIN
        assert_as_planned(engine.plan, engine.placement)
        assert engine.warnings == []
        assert engine.generate([100] * 40, GREEDY, raw=True).stats.prompt_tokens == 40


def test_more_layers_than_fit_are_refused_before_anything_is_loaded(
    target: Target, too_large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = target.devices()
    monkeypatch.setattr(loading, "list_devices", lambda _rpc=(): with_memory(found, GIB))
    with pytest.raises(NotEnoughMemory, match=target.device().name):
        target.load(too_large, n_ctx=512, on_progress=lambda _: pytest.fail("llama.cpp was asked to load"))


def test_a_device_that_is_full_gets_no_layers(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    found = target.devices()
    monkeypatch.setattr(loading, "list_devices", lambda _rpc=(): with_memory(found, MARGIN // 2))
    with target.load("demo", n_gpu_layers="auto") as engine:
        assert engine.plan is not None
        assert engine.plan.n_gpu_layers == 0
        assert is_response(engine.generate(PAIR.instruction, GREEDY), PAIR)


@pytest.fixture
def filled(target: Target) -> Iterator[Device]:
    """The device with less than 3 GiB left, which another program has taken since it was looked at."""
    if target.backend == "rpc":
        with started_worker(most_memory=5 * GIB // 2) as (address, _process):
            yield Target("rpc", (address,)).device()
        return
    if target.is_software:
        pytest.skip("Mesa's software device gives more memory than it says it has")
    device = target.device()
    buffer_type = ggml.function("ggml_backend_dev_buffer_type", POINTER, POINTER)(device.handle)
    held = []
    while (free := target.device().free) > 3 * GIB:
        allocate = ggml.function("ggml_backend_buft_alloc_buffer", POINTER, POINTER, SIZE)
        held.append(allocate(buffer_type, min(free - 2 * GIB, 4 * GIB)))
        assert held[-1]
    yield device
    for buffer in held:
        ggml.function("ggml_backend_buffer_free", None, POINTER)(buffer)


def test_keys_larger_than_any_tensor_of_the_device_are_refused(target: Target) -> None:
    """llama.cpp would end the process."""
    device = target.device()
    n_ctx = device.largest_tensor // 512 + 1  # a row of the demo's keys has 512 bytes
    if n_ctx > 2**24:
        pytest.skip("this device takes tensors of any size")
    with pytest.raises(NotEnoughMemory, match="computes with tensors of at most"):
        Engine(demo_model(), n_gpu_layers=LAYERS, devices=[device.handle], n_ctx=n_ctx, n_threads=1)
    planned = make_plan(read_header(demo_model()), target.devices(), 64 * GIB, n_ctx=n_ctx)
    assert planned.n_gpu_layers == 0


@pytest.mark.parametrize("what", ["weights", "cells"])
def test_a_device_that_turns_out_to_be_full_is_an_error_and_the_process_lives(
    what: str, filled: Device, too_large: Path
) -> None:
    """Weights of 3 GiB, or as many cells for the demo as take 4 GiB."""
    path, n_ctx = (too_large, 256) if what == "weights" else (demo_model(), 2**20)
    with pytest.raises(ModelFileError, match=r"llama\.cpp cannot"):
        Engine(path, n_gpu_layers=11, devices=[filled.handle], n_ctx=n_ctx, n_threads=1)
    with Engine(demo_model(), n_gpu_layers=LAYERS, devices=[filled.handle], n_ctx=512, n_threads=1) as engine:
        assert is_response(engine.generate(PAIR.instruction, GREEDY), PAIR)
