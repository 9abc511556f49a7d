"""Which devices take layers, how much of their memory an automatic plan uses, and how layers are divided."""

from collections.abc import Sequence

from weblab_local.machine.devices import Device

MARGIN = 512 * 2**20
"""Bytes of a device's free memory that an automatic plan leaves alone: what llama.cpp's backends take for themselves
(CUDA keeps a dequantized weight, 190 MB in the 10B), and what other programs may want."""

RPC_SHARE = 0.8
"""A worker that offers its CPU reports all of its memory as free (ggml-cpu.cpp); so much of it is taken for free."""


def offload_targets(devices: Sequence[Device]) -> list[Device]:
    """Devices that layers can go to, in llama.cpp's order: workers, GPUs, and integrated ones if there is no other."""
    workers = [device for device in devices if device.kind == "rpc"]
    gpus = [device for device in devices if device.kind == "gpu"]
    return workers + (gpus or [device for device in devices if device.kind == "igpu"])


def usable_bytes(device: Device) -> int:
    """What an automatic plan may take of a device's free memory."""
    if device.kind == "rpc" and device.free == device.total:
        return int(device.free * RPC_SHARE)
    return max(0, device.free - MARGIN)


def split_layers(count: int, usable: Sequence[int]) -> list[int]:
    """`count` layers over devices in proportion to what they can take; the largest remainders get the rest."""
    if not usable:
        return []
    sizes = usable if sum(usable) else [1] * len(usable)
    exact = [count * size / sum(sizes) for size in sizes]
    layers = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: exact[i] - layers[i], reverse=True)
    for index in by_remainder[: count - sum(layers)]:
        layers[index] += 1
    return layers
