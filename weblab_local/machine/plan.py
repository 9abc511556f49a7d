"""What goes where, and whether it fits: decided from the GGUF's header before any weight is read.

`placement` reads from llama.cpp's log what really happened; tests/benchmarks/memory.py prints both.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from weblab_local.errors import NotEnoughMemory
from weblab_local.i18n import _
from weblab_local.llama.gguf_header import Header
from weblab_local.llama.kv_types import KvType
from weblab_local.machine.devices import Device
from weblab_local.machine.footprint import (
    CELLS,
    COPIES,
    F32,
    Shape,
    batch_size,
    compute_per_token,
    copied_to_help,
    group_of,
    keys_bytes,
    kv_bytes,
    rotation_bytes,
    rounded,
)
from weblab_local.machine.offload import offload_targets, split_layers, usable_bytes
from weblab_local.machine.placement import Placement
from weblab_local.machine.tensor_limit import require_room_for_keys
from weblab_local.sizes import memory_share

BITS = {"Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.82, "Q4_K_M": 5.12, "W4": 4.6, "W3": 3.67}
"""Bits per weight of the mixtures in the 10B, for advice; of those below Q4_K_M the ones that lose least."""


@dataclass(frozen=True)
class Share:
    """What one device holds, in bytes. `layers` are the first and the one after the last."""

    device: str
    layers: tuple[int, int]
    has_output: bool
    weights: int
    kv: int
    compute: int

    @property
    def n_layers(self) -> int:
        """Layers here, the output matrix being one, as in llama.cpp's n_gpu_layers."""
        return self.layers[1] - self.layers[0] + self.has_output

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True)
class Plan:
    """What goes where. Bytes throughout."""

    n_layer: int
    n_gpu_layers: int
    """The last so many layers are offloaded, the output matrix being one: n_layer + 1 is everything."""
    n_ctx: int
    """Cells of the KV cache, as llama.cpp rounds them up."""
    n_batch: int
    kv_type: KvType
    flash_attention: bool
    cpu: Share
    offloaded: tuple[Share, ...]
    devices: tuple[Device, ...]
    """The devices of `offloaded`, in the same order, which is llama.cpp's."""
    placement: Placement
    """The buffers that llama.cpp is expected to report."""
    reasons: tuple[str, ...] = ()
    """Why, a sentence each, for a person."""

    @property
    def total(self) -> int:
        """All bytes on all devices. Weights that are mapped and rearranged count once."""
        return self.cpu.total + sum(share.total for share in self.offloaded)

    @property
    def ram(self) -> int:
        """Bytes of this machine's memory: the CPU's share, and those of devices without memory of their own."""
        return self.cpu.total + sum(share.total for device, share in self.pairs if device.shares_ram)

    @property
    def pairs(self) -> Sequence[tuple[Device, Share]]:
        """Devices and what they hold."""
        return list(zip(self.devices, self.offloaded, strict=True))

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """llama.cpp's `tensor_split`: layers per device."""
        return tuple(share.n_layers for share in self.offloaded)


@dataclass(frozen=True)
class _Wanted:
    """What is to be planned."""

    header: Header
    repacked: Mapping[str, tuple[str, int]]
    n_ctx: int
    n_parallel: int
    kv_type: KvType
    flash_attention: bool
    n_batch: int | None
    adapters: Mapping[str, int]

    @cached_property
    def shape(self) -> Shape:
        return Shape.of(self.header, self.adapters)


@dataclass(frozen=True)
class _Limits:
    """Where layers can go, how many bytes may be used there, and of this machine's memory."""

    targets: Sequence[Device]
    usable: Sequence[int]
    ram: int

    def overfull(self, plan: Plan) -> list[tuple[Device, Share]]:
        """Devices that cannot hold what is planned for them."""
        room = {device.handle: size for device, size in zip(self.targets, self.usable, strict=True)}
        return [(device, share) for device, share in plan.pairs if share.total > room[device.handle]]

    def hold(self, plan: Plan) -> bool:
        return plan.ram <= self.ram and not self.overfull(plan)


def make_plan(
    header: Header,
    devices: Sequence[Device],
    ram_available: int,
    *,
    n_ctx: int,
    n_parallel: int = 1,
    kv_type: KvType = "f16",
    flash_attention: bool | None = None,
    n_batch: int | None = None,
    n_gpu_layers: int | Literal["auto"] = "auto",
    repacked: Mapping[str, tuple[str, int]] | None = None,
    adapters: Mapping[str, int] | None = None,
) -> Plan:
    """Decide what goes where.

    devices         all of ggml's; layers go to workers and GPUs, in llama.cpp's order
    n_batch         prompt tokens computed at once; None: `footprint.batch_size`
    n_gpu_layers    a number, of which what does not fit is an error; -1 is all; "auto": as many as fit with a margin
    repacked        what `repack.repacked` says; None when weights stay as they are
    adapters        bytes of LoRA adapters by the tensors that they change, beside which llama.cpp puts them

    Raises NotEnoughMemory, which says what would fit.
    """
    wanted = _Wanted(
        header, repacked or {}, n_ctx, n_parallel, kv_type, flash_attention is not False, n_batch, adapters or {}
    )
    targets = _with_room_for_keys(wanted, offload_targets(devices), required=n_gpu_layers not in ("auto", 0))
    everything = wanted.shape.n_layer + 1
    if n_gpu_layers == "auto":
        limits = _Limits(targets, [usable_bytes(device) for device in targets], ram_available)
        counts = range(everything if targets else 0, -1, -1)
    else:
        limits = _Limits(targets, [device.free for device in targets], ram_available)
        n_offloaded = everything if n_gpu_layers < 0 else min(n_gpu_layers, everything)
        counts = range(n_offloaded, n_offloaded - 1, -1) if targets else range(1)
    larger: Plan | None = None
    most: Plan | None = None
    for count in counts:
        plan = _plan(wanted, targets, split_layers(count, limits.usable))
        if limits.hold(plan):
            return replace(plan, reasons=tuple(_reasons(plan, limits, larger)))
        if not limits.overfull(plan):
            most = most or plan
        larger = plan
    assert larger is not None
    raise _refusal(wanted, limits, most or larger)


def _with_room_for_keys(wanted: _Wanted, targets: Sequence[Device], *, required: bool) -> list[Device]:
    """The devices that can compute with one layer's keys, the largest tensor of a KV cache.

    Raises NotEnoughMemory where one that is `required` cannot.
    """
    if required:
        for device in targets:
            require_room_for_keys(
                wanted.header, wanted.n_ctx, wanted.kv_type, device.description, device.largest_tensor
            )
    size = keys_bytes(wanted.shape, wanted.kv_type, wanted.n_ctx)
    return [device for device in targets if device.largest_tensor >= size]


def _plan(wanted: _Wanted, targets: Sequence[Device], split: Sequence[int]) -> Plan:
    shape = wanted.shape
    used = [(device, count) for device, count in zip(targets, split, strict=True) if count]
    n_gpu_layers = sum(count for _device, count in used)
    on_cpu = shape.n_layer + 1 - n_gpu_layers
    cells = rounded(wanted.n_ctx)
    n_batch = max(wanted.n_parallel, wanted.n_batch or batch_size(wanted.n_parallel, n_gpu_layers))
    # llama.cpp lets several devices compute different batches at once when nothing but the embedding is left here.
    copies = COPIES if len(used) > 1 and not on_cpu else 1

    def share(device: Device | None, start: int, count: int) -> Share:
        stop = min(start + count, shape.n_layer)
        has_output = start + count > shape.n_layer
        compute = compute_per_token(
            shape,
            cells,
            wanted.flash_attention,
            layers=(start, stop),
            has_output=has_output,
            is_first=device is None,
            after_cpu_layers=device is not None and start == on_cpu > 0,
            copies=copies,
        )
        # What rotates a quantized cache is an input: the CPU has it, and whichever device attends.
        rotation = rotation_bytes(shape, wanted.kv_type) if device is None or stop > start else 0
        return Share(
            device=device.name if device else "CPU",
            layers=(start, stop),
            has_output=has_output,
            weights=sum(shape.layers[start:stop])
            + (shape.output if has_output else 0)
            + (0 if device else shape.embedding),
            kv=kv_bytes(shape, wanted.kv_type, cells, stop - start),
            compute=min(wanted.n_ctx, n_batch) * compute + copies * rotation,
        )

    starts = [on_cpu + sum(count for _device, count in used[:index]) for index in range(len(used))]
    offloaded = [share(device, start, count) for (device, count), start in zip(used, starts, strict=True)]
    cpu = share(None, 0, on_cpu)
    logits = wanted.n_parallel * shape.n_vocab * F32
    # The CPU computes in the first device's host memory, if it has such; the output's device has the logits in its own.
    first, last = (used[0][0].host_buffer, used[-1][0].host_buffer) if used else ("", "")
    compute = Counter({first or "CPU": cpu.compute})
    compute[last or "CPU"] += logits
    cpu = replace(cpu, compute=cpu.compute + logits)
    helper = next((index for index, (device, _count) in enumerate(used) if device.kind != "rpc"), None)
    if on_cpu and helper is not None:
        # The first GPU also computes long prompts for the layers that stayed here.
        as_there = share(used[helper][0], 0, min(on_cpu, shape.n_layer)).compute
        needed = max(offloaded[helper].compute, as_there) + copied_to_help(
            wanted.header, wanted.kv_type, cells, cpu.layers
        )
        offloaded[helper] = replace(offloaded[helper], compute=needed)
    repacked = {} if any(device.host_buffer for device, _count in used) else wanted.repacked
    cpu, weights = _cpu_weights(wanted.header, cpu, repacked)
    devices = tuple(device for device, _count in used)
    on_devices = [(device.buffer, share) for device, share in zip(devices, offloaded, strict=True)]
    return Plan(
        n_layer=shape.n_layer,
        n_gpu_layers=n_gpu_layers,
        n_ctx=cells,
        n_batch=n_batch,
        kv_type=wanted.kv_type,
        flash_attention=wanted.flash_attention,
        cpu=cpu,
        offloaded=tuple(offloaded),
        devices=devices,
        placement=Placement(
            weights=weights | {buffer: share.weights for buffer, share in on_devices},
            kv={buffer: share.kv for buffer, share in [("CPU", cpu), *on_devices] if share.kv},
            compute={**compute, **{buffer: share.compute for buffer, share in on_devices}},
        ),
    )


def _cpu_weights(header: Header, cpu: Share, repacked: Mapping[str, tuple[str, int]]) -> tuple[Share, dict[str, int]]:
    """The CPU's share with rearranged weights at their size there; and the buffers that llama.cpp reports for it.

    It maps one range of the file, from the first tensor that is used in place to the last, whatever lies between.
    """
    groups = {"token_embd", *(f"blk.{layer}" for layer in range(*cpu.layers)), *(["output"] if cpu.has_output else [])}
    here = {name: tensor for name, tensor in header.tensors.items() if group_of(name) in groups}
    buffers: Counter[str] = Counter()
    grown = 0
    for name, (buffer, size) in repacked.items():
        if name in here:
            buffers[buffer] += size
            grown += size - here.pop(name).nbytes
    first = min(tensor.offset for tensor in here.values())
    last = max(tensor.offset + tensor.nbytes for tensor in here.values())
    return replace(cpu, weights=cpu.weights + grown), {"CPU_Mapped": last - first, **buffers}


def _reasons(plan: Plan, limits: _Limits, larger: Plan | None) -> list[str]:
    reasons = [
        _("{n} of {all} layers on {device} ({description}): {size} of {free} free.").format(
            n=share.n_layers,
            all=plan.n_layer + 1,
            device=device.name,
            description=device.description,
            size=memory_share(share.total),
            free=memory_share(device.free),
        )
        for device, share in plan.pairs
    ]
    if not limits.targets:
        reasons.append(_("No GPU and no worker: everything runs on the CPU."))
    elif larger is not None:
        reasons.append(
            _("One layer more would need {size} there; {usable} may be used.").format(
                size=memory_share(sum(share.total for share in larger.offloaded)),
                usable=memory_share(sum(limits.usable)),
            )
        )
    reasons.append(
        _("Memory: {total}, of it {kv} for {n_ctx} tokens in {kv_type}.").format(
            total=memory_share(plan.total),
            kv=memory_share(plan.cpu.kv + sum(share.kv for share in plan.offloaded)),
            n_ctx=plan.n_ctx,
            kv_type=plan.kv_type,
        )
    )
    return reasons


def _refusal(wanted: _Wanted, limits: _Limits, plan: Plan) -> NotEnoughMemory:
    """What does not fit, and each single change that would make it fit."""
    split = dict(zip([device.handle for device in plan.devices], plan.tensor_split, strict=True))

    def fits(**changes: object) -> bool:
        changed = replace(wanted, **changes)  # type: ignore[arg-type]
        return limits.hold(_plan(changed, limits.targets, [split.get(device.handle, 0) for device in limits.targets]))

    advice = []
    overfull = limits.overfull(plan)
    if overfull:
        device, share = overfull[0]
        message = _("{n} layers need {size} on {device} ({description}); {free} are free there.").format(
            n=share.n_layers,
            size=memory_share(share.total),
            device=device.name,
            description=device.description,
            free=memory_share(device.free),
        )
        advice.append("n_gpu_layers=auto")
    else:
        message = _(
            "{model} needs {size} of memory (weights {weights}, KV cache {kv}, computing {compute}); "
            "{available} are available."
        ).format(
            model=wanted.header.path.name,
            size=memory_share(plan.ram),
            weights=memory_share(plan.cpu.weights),
            kv=memory_share(plan.cpu.kv),
            compute=memory_share(plan.cpu.compute),
            available=memory_share(limits.ram),
        )
    shorter = range(CELLS, wanted.n_ctx, CELLS)
    if n_fitting := bisect(shorter, False, key=lambda n_ctx: not fits(n_ctx=n_ctx)):
        advice.append(f"n_ctx={shorter[n_fitting - 1]}")
    smaller: list[KvType] = ["q8_0", "q4_0"]
    smaller = smaller[smaller.index(wanted.kv_type) + 1 :] if wanted.kv_type in smaller else smaller
    advice += [f"kv_type={kv}" for kv in smaller if fits(kv_type=kv, flash_attention=True)][:1]
    shape = wanted.shape
    weights = sum(shape.layers) + shape.embedding + shape.output
    spare = limits.ram - (plan.ram - plan.cpu.weights)
    for name, bits in BITS.items():
        ratio = bits * shape.n_weights / 8 / weights
        if ratio < 0.97 and plan.cpu.weights * ratio <= spare and not overfull:
            advice.append(_("the model in {mixture}").format(mixture=name))
            break
    remedy = (
        _("This would fit: {changes}.").format(changes=_(", or ").join(advice))
        if advice
        else _("Close other programs, or use a smaller model.")
    )
    return NotEnoughMemory(message, remedy)
