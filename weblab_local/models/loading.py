"""From a model's name to an engine: find it, look at the machine, plan, load, and read back what llama.cpp did."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from weblab_local.engine.engine import DEFAULT_N_CTX, Engine
from weblab_local.errors import NotEnoughMemory
from weblab_local.i18n import _
from weblab_local.llama import compatibility
from weblab_local.llama import log as llama_log
from weblab_local.llama.adapters import adapter_bytes, open_adapters
from weblab_local.llama.gptneox import read_gptneox
from weblab_local.llama.kv_types import KvType, require_kv_type
from weblab_local.machine.devices import Device, list_devices, ram
from weblab_local.machine.placement import Placement, read_placement
from weblab_local.machine.plan import Plan, make_plan
from weblab_local.machine.repack import reads_prompts_faster, repacked
from weblab_local.machine.rpc import register
from weblab_local.machine.tuning import Choice, WorkloadName, choose
from weblab_local.models.store import find_adapter, find_model

logger = logging.getLogger("weblab_local")

SHORTER_CONTEXTS = (1536, 1024, 768, 512)
"""What is tried where nobody asked for a context and the usual one does not fit."""


def plan(
    path: Path,
    *,
    n_ctx: int = DEFAULT_N_CTX,
    n_parallel: int = 1,
    n_gpu_layers: int | Literal["auto"] = "auto",
    kv_type: KvType = "f16",
    flash_attention: bool | None = None,
    repack: bool = True,
    n_batch: int | None = None,
    rpc: Sequence[str] = (),
    lora: Sequence[tuple[Path, float]] = (),
    devices: Sequence[Device] | None = None,
) -> Plan:
    """What `load` would do with the GGUF at `path` here and now, without reading its weights. Raises what it raises.

    `devices` are those to plan for, the CPU among them; None: all of ggml's and those of the workers `rpc`.
    """
    require_kv_type(kv_type)
    header = read_gptneox(path)
    if devices is None:
        devices = list_devices(register(rpc) if rpc else ())
    cpu = next(device for device in devices if device.kind == "cpu")
    return make_plan(
        header,
        devices,
        ram().available,
        n_ctx=n_ctx,
        n_parallel=n_parallel,
        kv_type=kv_type,
        flash_attention=flash_attention,
        n_batch=n_batch,
        n_gpu_layers=n_gpu_layers,
        repacked=repacked(header, cpu.handle) if repack else None,
        adapters=adapter_bytes(open_adapters(lora, header)),
    )


def load(
    name_or_path: str | None = None,
    *,
    n_ctx: int | None = None,
    n_parallel: int = 1,
    n_gpu_layers: int | Literal["auto"] = "auto",
    n_threads: int | None = None,
    kv_type: KvType | None = None,
    flash_attention: bool | None = None,
    repack: bool | None = None,
    n_batch: int | None = None,
    drafts: bool | None = None,
    rpc: Sequence[str] = (),
    lora: Sequence[tuple[str | Path, float]] = (),
    workload: WorkloadName = "chat",
    on_progress: Callable[[float], None] | None = None,
) -> Engine:
    """Load a model, planned for this machine. The engine has the `plan` and llama.cpp's own `placement`.

    name_or_path      a GGUF's path, a name in the store, "demo"; None: the store's default
    n_ctx             KV cells that all sequences share; None: 2048, or what fits of it
    n_gpu_layers      layers on GPUs and workers; -1 is all, "auto" as many as fit
    drafts            guess tokens ahead and check them together; None: in answers that are drawn without a seed
    rpc               workers that take layers too, as host:port; what to know of them is in `machine.rpc`
    lora              LoRA adapters to compute with: each a GGUF's path, or its name in the store, and its scale
    workload          what it is for: "chat", "serve" (several answers at once), "prompt" (reading, as for `score`)
    on_progress       called with the share loaded, 0 to 1; an exception from it cancels the loading

    The rest is Engine's, and where it is None what `weblab-local bench --save` found best on this machine for the
    workload. Without it, for "prompt", batches of 512, and weights as they are in the file where these read faster; a
    batch that does not fit becomes that of a chat. Where kv_type or n_ctx is None and the usual f16 and 2048 do not
    fit, the KV cache becomes q8_0, and then the context shorter; the engine's `warnings` say so. Raises
    ModelNotFoundError, ModelFileError, NotEnoughMemory, WorkerError, or WeblabError for settings that cannot be.
    """
    path = find_model(name_or_path)
    adapters = [(find_adapter(adapter), scale) for adapter, scale in lora]
    repack_for_prompts = workload != "prompt" or _repack_for_prompts(path)
    choice = choose(
        n_threads, kv_type, flash_attention, repack, n_batch, workload=workload, repack_for_prompts=repack_for_prompts
    )
    rooms = _rooms(n_ctx, kv_type, n_batch, choice)
    room, planned = _first_that_fits(
        rooms,
        lambda room: plan(
            path,
            n_ctx=room.n_ctx,
            n_parallel=n_parallel,
            n_gpu_layers=n_gpu_layers,
            kv_type=room.kv_type,
            flash_attention=choice.flash_attention,
            repack=choice.repack,
            n_batch=room.n_batch,
            rpc=rpc,
            lora=adapters,
        ),
    )
    engine = load_planned(
        path,
        planned,
        replace(choice, kv_type=room.kv_type),
        n_ctx=room.n_ctx,
        n_parallel=n_parallel,
        drafts=drafts,
        lora=adapters,
        on_progress=on_progress,
    )
    engine.warnings = [
        *compatibility.require(),
        *_smaller_cache_warnings(rooms[0], room),
        *engine.warnings,
    ]
    for warning in engine.warnings:
        logger.warning("%s", warning)
    return engine


def load_planned(
    path: Path,
    planned: Plan,
    choice: Choice,
    *,
    n_ctx: int,
    n_parallel: int = 1,
    drafts: bool | None = None,
    lora: Sequence[tuple[Path, float]] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Engine:
    """Load the GGUF at `path` as `plan` planned it with the same settings, and read back what llama.cpp did.

    The engine's `warnings` say where that is not as planned. Raises what `load` raises.
    """
    with llama_log.collect_lines() as lines:
        engine = Engine(
            path,
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            n_gpu_layers=planned.n_gpu_layers,
            n_batch=planned.n_batch,
            n_threads=choice.n_threads,
            kv_type=choice.kv_type,
            flash_attention=choice.flash_attention,
            repack=choice.repack,
            drafts=drafts,
            devices=[device.handle for device in planned.devices],
            tensor_split=planned.tensor_split,
            lora=lora,
            on_progress=on_progress,
        )
    engine.plan, engine.placement = planned, read_placement(lines)
    engine.warnings = offload_warnings(planned, engine.placement)
    return engine


def _repack_for_prompts(path: Path) -> bool:
    header = read_gptneox(path)
    cpu = next(device for device in list_devices() if device.kind == "cpu")
    return reads_prompts_faster(header, repacked(header, cpu.handle))


class _Room(NamedTuple):
    """What takes memory beside the weights."""

    n_ctx: int
    kv_type: KvType
    n_batch: int | None


def _rooms(n_ctx: int | None, kv_type: KvType | None, n_batch: int | None, choice: Choice) -> list[_Room]:
    """What is wanted, then what else may be tried because nobody asked for it: the usual batch, a smaller cache."""
    wanted = DEFAULT_N_CTX if n_ctx is None else n_ctx
    smaller: KvType = choice.kv_type
    if kv_type is None and choice.kv_type == "f16" and choice.flash_attention is not False:
        smaller = "q8_0"
    contexts = (wanted,) if n_ctx is not None else (wanted, *SHORTER_CONTEXTS)
    rooms = [_Room(wanted, choice.kv_type, choice.n_batch), _Room(wanted, choice.kv_type, n_batch)]
    return list(dict.fromkeys([*rooms, *(_Room(context, smaller, n_batch) for context in contexts)]))


def _first_that_fits(rooms: Sequence[_Room], make: Callable[[_Room], Plan]) -> tuple[_Room, Plan]:
    """The first that can be planned, and its plan. Raises the NotEnoughMemory of the very first."""
    refusal = None
    for room in rooms:
        try:
            return room, make(room)
        except NotEnoughMemory as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _smaller_cache_warnings(wanted: _Room, chosen: _Room) -> list[str]:
    if wanted[:2] == chosen[:2]:
        return []
    return [
        _(
            "The memory does not hold a context of {wanted} tokens with a KV cache in {wanted_type}: it is {n_ctx} "
            "tokens in {kv_type} now. Close other programs, or take a smaller model, for the rest."
        ).format(wanted=wanted.n_ctx, wanted_type=wanted.kv_type, n_ctx=chosen.n_ctx, kv_type=chosen.kv_type)
    ]


def offload_warnings(plan: Plan, placement: Placement) -> list[str]:
    """A sentence for each device that was to hold layers and holds no weights, or none that the log tells of."""
    if not placement.weights:
        return [
            _(
                "{n} layers were planned for {device} ({description}); whether they are there is unknown, since "
                "llama.cpp's log does not say it in the words that this program knows."
            ).format(n=share.n_layers, device=device.name, description=device.description)
            for device, share in plan.pairs
        ]
    return [
        _(
            "{n} layers were planned for {device} ({description}), but llama.cpp put none there: they run on the CPU. "
            "Update its driver, or install again for it (make install BACKEND=...)."
        ).format(n=share.n_layers, device=device.name, description=device.description)
        for device, share in plan.pairs
        if not placement.weights_on(device.buffer)
    ]
