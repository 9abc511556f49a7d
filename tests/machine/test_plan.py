"""The plan, against what llama.cpp reports after loading, and on machines that are only described."""

import logging
from bisect import bisect_left
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import quant_shape_to_byte_shape

from convert.quantization.mixtures import ALL, tensor_types
from tests.support.conversions import converted
from tests.support.plans import assert_as_planned
from weblab_local import load
from weblab_local.errors import NotEnoughMemory
from weblab_local.llama.gguf_header import Header, TensorInfo, read_header
from weblab_local.llama.kv_types import KvType
from weblab_local.machine.devices import Device, list_devices
from weblab_local.machine.footprint import CPU_BATCH, Shape
from weblab_local.machine.offload import MARGIN, usable_bytes
from weblab_local.machine.placement import Placement, read_placement
from weblab_local.machine.plan import BITS, Plan, make_plan
from weblab_local.machine.repack import reads_prompts_faster
from weblab_local.machine.tuning import PROMPT_BATCH
from weblab_local.models import loading
from weblab_local.models.loading import offload_warnings
from weblab_local.models.store import demo_model

MIB, GIB = 2**20, 2**30


def the_10b() -> Header:
    """The 10B's header in Q4_K_M: shapes from its card, types as llama-quantize picks them."""
    n_embd, n_ff, n_vocab, n_layer = 4864, 19456, 50277, 36
    q4_k, q6_k, f32 = (12, 144 / 256), (14, 210 / 256), (0, 4.0)
    sizes: dict[str, tuple[tuple[int, float], int]] = {"token_embd.weight": (q4_k, n_vocab * n_embd)}
    for layer in range(n_layer):
        more = layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2
        matrices = {"attn_qkv": (n_embd, 3 * n_embd), "attn_output": (n_embd, n_embd)}
        matrices |= {"ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd)}
        for name, (columns, rows) in matrices.items():
            ggml_type = q6_k if more and name in ("attn_qkv", "ffn_down") else q4_k
            sizes[f"blk.{layer}.{name}.weight"] = (ggml_type, columns * rows)
            sizes[f"blk.{layer}.{name}.bias"] = (f32, rows)
        for norm in ("attn_norm", "ffn_norm"):
            sizes |= {f"blk.{layer}.{norm}.{part}": (f32, n_embd) for part in ("weight", "bias")}
    sizes |= {f"output_norm.{part}": (f32, n_embd) for part in ("weight", "bias")}
    sizes["output.weight"] = (q6_k, n_vocab * n_embd)
    tensors, offset = {}, 4 * MIB
    for tensor, ((ggml_type_id, per_weight), count) in sizes.items():
        tensors[tensor] = TensorInfo(ggml_type_id, offset, int(per_weight * count))
        offset += tensors[tensor].nbytes
    numbers = {"block_count": n_layer, "embedding_length": n_embd, "feed_forward_length": n_ff}
    numbers |= {"attention.head_count": 38, "context_length": 2048}
    return Header(Path("weblab-10b.gguf"), {f"gptneox.{key}": value for key, value in numbers.items()}, tensors)


def gpu(free: int, name: str = "CUDA0", **other: Any) -> Device:
    """A graphics card."""
    card = Device(name, "a card", "gpu", "CUDA", free, free, hash(name), name, host_buffer="CUDA_Host")
    return replace(card, **other)


def plan_10b(devices: list[Device], ram: int = 64 * GIB, **options: Any) -> Plan:
    return make_plan(the_10b(), devices, ram, **{"n_ctx": 2048, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_ctx": 300},
        {"n_ctx": 100},
        {"n_ctx": 8192, "n_parallel": 4},
        {"kv_type": "q8_0"},
        {"kv_type": "q4_0", "n_ctx": 4096},
        {"flash_attention": False},
        {"flash_attention": False, "n_ctx": 8192, "n_parallel": 2},
        {"n_parallel": 200},
        {"n_parallel": 200, "n_batch": 100},
        {"repack": False},
        {"workload": "prompt"},
        {"workload": "prompt", "n_ctx": 8192, "n_parallel": 4},
    ],
    ids=str,
)
def test_the_demo_takes_what_was_planned(options: dict[str, Any]) -> None:
    with load("demo", **options) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        quantized = options.get("kv_type", "f16") != "f16"
        assert_as_planned(engine.plan, engine.placement, tolerance=0.03 if quantized else 0.002)
        assert engine.warnings == []


@pytest.mark.parametrize("quant", ["F16", "Q4_0", "Q4_K_M", "IQ4_XS", "Q6_K"])
@pytest.mark.parametrize("repack", [True, False])
def test_rearranged_weights_are_foreseen(quant: str, repack: bool, tmp_path: Path, demo_checkpoint: Path) -> None:
    (path,) = converted(demo_checkpoint, tmp_path, quant)
    with load(str(path), repack=repack) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        assert_as_planned(engine.plan, engine.placement)
        if not repack:
            assert engine.plan.placement.weights.keys() == {"CPU_Mapped"}


@pytest.mark.parametrize(
    ("processor", "buffer", "ggml_type", "faster"),
    [
        ("x86_64", "CPU_REPACK", 12, False),
        ("AMD64", "CPU_REPACK", 12, False),
        ("x86_64", "CPU_REPACK", 2, True),
        ("x86_64", "AMX", 12, True),
        ("arm64", "CPU_REPACK", 12, True),
    ],
)
def test_q4_k_on_x86_is_not_rearranged_for_prompts(
    monkeypatch: pytest.MonkeyPatch, processor: str, buffer: str, ggml_type: int, faster: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    header = the_10b()
    tensors = {name: replace(tensor, ggml_type=ggml_type) for name, tensor in header.tensors.items()}
    rearranged = {name: (buffer, tensor.nbytes) for name, tensor in tensors.items() if "ffn_up.weight" in name}
    assert reads_prompts_faster(replace(header, tensors=tensors), rearranged) == faster
    assert reads_prompts_faster(header, {})


def test_the_10b_on_a_laptop() -> None:
    plan = plan_10b([])
    shape = Shape.of(the_10b())
    assert (shape.n_vocab, shape.n_head) == (50277, 38)
    assert plan.n_gpu_layers == 0
    assert plan.cpu.kv == 2 * 36 * 4864 * 2048 * 2
    assert plan.cpu.weights == sum(tensor.nbytes for tensor in the_10b().tensors.values())
    assert plan.ram == plan.total == plan.cpu.total
    assert "CPU" in plan.reasons[0]


@pytest.mark.parametrize("free", [1, 2, 3, 4, 6, 8, 10, 12])
def test_as_many_layers_as_fit_go_to_a_card_and_no_more(free: int) -> None:
    card = gpu(free * GIB)
    plan = plan_10b([card])
    assert plan.n_gpu_layers == sum(share.n_layers for share in plan.offloaded) <= 37
    for share in plan.offloaded:
        assert share.total <= card.free - MARGIN
    if plan.n_gpu_layers < 37:
        with pytest.raises(NotEnoughMemory, match=r"CUDA0"):
            plan_10b([replace(card, free=usable_bytes(card))], n_gpu_layers=plan.n_gpu_layers + 1)
    if plan.n_gpu_layers:
        assert f"{plan.n_gpu_layers} of 37 layers on CUDA0" in plan.reasons[0]


def test_more_memory_never_means_fewer_layers() -> None:
    counts = [plan_10b([gpu(size * GIB // 4)]).n_gpu_layers for size in range(2, 50, 3)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 37)


def test_a_shorter_context_or_a_smaller_cache_leaves_room_for_more_layers() -> None:
    card = gpu(5 * GIB)
    f16 = plan_10b([card], n_ctx=8192).n_gpu_layers
    assert f16 < plan_10b([card], n_ctx=8192, kv_type="q8_0").n_gpu_layers
    assert f16 < plan_10b([card], n_ctx=2048).n_gpu_layers


def test_layers_are_spread_over_workers_and_cards_in_llama_cpps_order() -> None:
    worker = gpu(4 * GIB, "RPC0", kind="rpc", backend="RPC", total=8 * GIB, host_buffer="")
    plan = plan_10b([gpu(8 * GIB), worker])
    assert [device.name for device in plan.devices] == ["RPC0", "CUDA0"]
    assert plan.n_gpu_layers == 37
    assert plan.offloaded[0].layers == (0, plan.offloaded[0].n_layers)
    assert plan.offloaded[1].layers == (plan.offloaded[0].n_layers, 36)
    assert plan.offloaded[1].has_output
    assert 1.5 < plan.tensor_split[1] / plan.tensor_split[0] < 3


def test_a_worker_that_calls_all_its_memory_free_is_not_filled() -> None:
    worker = gpu(8 * GIB, "RPC0", kind="rpc", backend="RPC")
    assert usable_bytes(worker) == int(0.8 * 8 * GIB)


def test_an_integrated_gpu_takes_the_cpus_memory() -> None:
    shared = gpu(16 * GIB, "Vulkan0", kind="igpu", backend="Vulkan")
    plan = plan_10b([shared], ram=16 * GIB)
    assert plan.n_gpu_layers == 37
    assert plan.ram == plan.total
    with pytest.raises(NotEnoughMemory):
        plan_10b([shared], ram=6 * GIB)


def test_an_integrated_gpu_is_left_alone_beside_a_real_one() -> None:
    plan = plan_10b([gpu(16 * GIB, "Vulkan0", kind="igpu"), gpu(16 * GIB, "Vulkan1")])
    assert [device.name for device in plan.devices] == ["Vulkan1"]


def test_a_card_with_pinned_memory_keeps_llama_cpp_from_rearranging() -> None:
    every = {name: ("CPU_REPACK", info.nbytes) for name, info in the_10b().tensors.items() if "ffn_up.weight" in name}
    assert "CPU_REPACK" in plan_10b([], repacked=every).placement.weights
    assert "CPU_REPACK" not in plan_10b([gpu(4 * GIB)], repacked=every).placement.weights


@pytest.mark.parametrize(("wanted", "placed"), [(0, 0), (1, 1), (20, 20), (37, 37), (99, 37), (-1, 37)])
def test_a_number_of_layers_is_kept_to(wanted: int, placed: int) -> None:
    assert plan_10b([gpu(24 * GIB)], n_gpu_layers=wanted).n_gpu_layers == placed
    assert plan_10b([], n_gpu_layers=wanted).n_gpu_layers == 0


@pytest.mark.parametrize("ram", [range(8 * GIB, 9 * GIB, GIB), range(5 * GIB, 9 * GIB, GIB // 2)])
def test_what_a_refusal_says_would_fit_does_fit(ram: range) -> None:
    for available in ram:
        with pytest.raises(NotEnoughMemory) as refusal:
            plan_10b([], available, n_ctx=8192)
        changes = refusal.value.remedy.removeprefix("This would fit: ").rstrip(".").split(", or ")
        for change in changes:
            key, _, value = change.partition("=")
            if key == "n_ctx":
                plan_10b([], available, n_ctx=int(value))
                with pytest.raises(NotEnoughMemory):
                    plan_10b([], available, n_ctx=int(value) + 1)
            elif key == "kv_type":
                plan_10b([], available, n_ctx=8192, kv_type=value)


def test_the_10b_in_w3_runs_on_8_gb() -> None:
    """Q4_K_M's header, its tensors as much smaller as W3's bits are fewer."""
    header = the_10b()
    share = BITS["W3"] / BITS["Q4_K_M"]
    tensors = {name: replace(tensor, nbytes=int(tensor.nbytes * share)) for name, tensor in header.tensors.items()}
    smaller = replace(header, tensors=tensors)
    plan = make_plan(smaller, [], 7 * 10**9, n_ctx=2048)
    assert plan.total < 6.5e9
    plan = make_plan(smaller, [], 6 * 10**9, n_ctx=2048, kv_type="q8_0")
    assert plan.total < 5.8e9


@pytest.mark.parametrize("name", ["W4", "W3"])
def test_the_bits_that_advice_counts_with_are_the_mixtures(name: str) -> None:
    shapes = {
        "token_embd.weight": (50304, 4864),
        "output.weight": (50304, 4864),
        **{f"blk.{layer}.attn_qkv.weight": (3 * 4864, 4864) for layer in range(36)},
        **{f"blk.{layer}.attn_output.weight": (4864, 4864) for layer in range(36)},
        **{f"blk.{layer}.ffn_up.weight": (4 * 4864, 4864) for layer in range(36)},
        **{f"blk.{layer}.ffn_down.weight": (4864, 4 * 4864) for layer in range(36)},
    }
    types = tensor_types(ALL[name], shapes, 36)
    n_bytes = sum(prod(quant_shape_to_byte_shape(shape, types[tensor])) for tensor, shape in shapes.items())
    assert n_bytes * 8 / sum(map(prod, shapes.values())) == pytest.approx(BITS[name], abs=0.01)


def test_a_model_that_is_too_large_is_refused_with_a_smaller_one() -> None:
    with pytest.raises(NotEnoughMemory, match=r"weblab-10b.gguf needs .* of memory") as refusal:
        plan_10b([], 7 * GIB, n_ctx=1024)
    assert "the model in W4" in refusal.value.remedy
    with pytest.raises(NotEnoughMemory) as refusal:
        plan_10b([], GIB)
    assert refusal.value.remedy == "Close other programs, or use a smaller model."


def test_what_cannot_fit_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(NotEnoughMemory, match="KV cache") as refusal:
        load("demo", n_ctx=10**9, on_progress=lambda _: pytest.fail("llama.cpp was asked to load"))
    assert "n_ctx=" in refusal.value.remedy


def with_memory_for(monkeypatch: pytest.MonkeyPatch, n_ctx: int, kv_type: KvType) -> None:
    """Leave just so much memory that the demo can be loaded with this cache."""
    available = 0

    def fits(candidate: int) -> bool:
        nonlocal available
        available = candidate
        try:
            loading.plan(demo_model(), n_ctx=n_ctx, kv_type=kv_type)
        except NotEnoughMemory:
            return False
        return True

    monkeypatch.setattr(loading, "ram", lambda: SimpleNamespace(available=available))
    least = bisect_left(range(GIB), True, key=fits)
    assert fits(least)


@pytest.mark.parametrize(("n_ctx", "kv_type"), [(2048, "f16"), (2048, "q8_0"), (1024, "q8_0"), (512, "q8_0")])
def test_a_cache_that_nobody_asked_for_shrinks_until_it_fits(
    monkeypatch: pytest.MonkeyPatch, n_ctx: int, kv_type: KvType
) -> None:
    with_memory_for(monkeypatch, n_ctx, kv_type)
    with load("demo") as engine:
        assert (engine.n_ctx, engine.kv_type) == (n_ctx, kv_type)
        assert engine.plan is not None
        assert bool(engine.warnings) == ((n_ctx, kv_type) != (2048, "f16"))
        assert all(f"it is {n_ctx} tokens in {kv_type} now" in warning for warning in engine.warnings)


def test_a_cache_that_was_asked_for_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory_for(monkeypatch, 512, "q8_0")
    for asked in ({"n_ctx": 2048}, {"kv_type": "f16"}, {"flash_attention": False}):
        with pytest.raises(NotEnoughMemory):
            load("demo", **asked)
    with_memory_for(monkeypatch, 2048, "q8_0")
    with load("demo", n_ctx=2048) as engine:
        assert engine.kv_type == "q8_0"


def test_a_large_batch_that_nobody_asked_for_gives_way_before_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory_for(monkeypatch, 2048, "f16")
    with load("demo", workload="prompt") as engine:
        assert (engine.n_ctx, engine.kv_type, engine.warnings) == (2048, "f16", [])
        assert engine.plan is not None
        assert engine.plan.n_batch == CPU_BATCH
    with pytest.raises(NotEnoughMemory):
        load("demo", n_ctx=2048, kv_type="f16", n_batch=PROMPT_BATCH)


def test_layers_that_stayed_on_the_cpu_are_a_warning() -> None:
    cpu = next(device for device in list_devices() if device.kind == "cpu")
    card = gpu(8 * GIB)
    plan = make_plan(read_header(demo_model()), [cpu, card], 8 * GIB, n_ctx=2048)
    (warning,) = offload_warnings(plan, Placement(weights={"CPU_Mapped": 5 * MIB}, kv={}, compute={}))
    assert "CUDA0" in warning
    assert "make install BACKEND" in warning
    for buffer in ("CUDA0", "CUDA0_Mapped"):
        assert offload_warnings(plan, Placement(weights={buffer: 5 * MIB}, kv={}, compute={})) == []


def test_the_warning_reaches_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("weblab_local.models.loading.offload_warnings", lambda *_: ["It runs on the CPU."])
    with caplog.at_level(logging.WARNING, "weblab_local"), load("demo") as engine:
        assert engine.warnings == ["It runs on the CPU."]
    assert "It runs on the CPU." in caplog.messages


def test_buffers_are_read_from_llama_cpps_log() -> None:
    placement = read_placement(
        [
            "load_tensors: offloaded 37/37 layers to GPU",
            "load_tensors:   CPU_Mapped model buffer size =   668.33 MiB",
            "load_tensors: RPC0[10.0.0.2:50052] model buffer size =  5000.00 MiB",
            "llama_context:        CPU  output buffer size =     0.50 MiB",
            "llama_kv_cache:      CUDA0 KV buffer size =  1368.00 MiB",
            "sched_reserve:        CPU compute buffer size =     1.50 MiB",
        ]
    )
    assert placement.weights == {"CPU_Mapped": round(668.33 * MIB), "RPC0[10.0.0.2:50052]": 5000 * MIB}
    assert placement.kv == {"CUDA0": 1368 * MIB}
    assert placement.compute == {"CPU": 2 * MIB}


KEYS = 2048 * 4864 * 2
"""Bytes of a layer's keys of the 10B with 2,048 cells in f16."""


def test_a_device_that_cannot_compute_with_a_layers_keys_gets_no_layers_by_itself() -> None:
    assert plan_10b([gpu(24 * GIB, largest_tensor=KEYS)]).n_gpu_layers == 37
    assert plan_10b([gpu(24 * GIB, largest_tensor=KEYS - 1)]).n_gpu_layers == 0
    assert plan_10b([gpu(24 * GIB, largest_tensor=KEYS - 1)], kv_type="q8_0").n_gpu_layers == 37
    both = plan_10b([gpu(24 * GIB, largest_tensor=KEYS - 1), gpu(24 * GIB, "CUDA1")])
    assert [device.name for device in both.devices] == ["CUDA1"]


def test_layers_asked_for_on_such_a_device_are_refused() -> None:
    with pytest.raises(NotEnoughMemory, match=r"a card computes with tensors of at most .*\nUse a smaller n_ctx"):
        plan_10b([gpu(24 * GIB, largest_tensor=KEYS - 1)], n_gpu_layers=10)


def test_a_card_has_room_for_what_it_computes_for_the_layers_of_the_cpu() -> None:
    """A weight, a layer's cells, and what all the layers' activations take; of two cards the first one does that."""
    alone, helped = (plan_10b([gpu(24 * GIB)], n_gpu_layers=count).offloaded[0].compute for count in (37, 10))
    largest = 4864 * 19456 * 144 // 256
    assert helped > alone + 2 * KEYS + largest
    first, second = plan_10b([gpu(24 * GIB), gpu(24 * GIB, "CUDA1")], n_gpu_layers=10).offloaded
    assert first.compute > second.compute + 2 * KEYS
