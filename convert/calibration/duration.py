"""How long conversions take on this machine: their operations, and a trial of how fast those are done here."""

import timeit
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType

from convert.calibration.compensation import calibration_tokens
from convert.calibration.moments import column_parts, follows
from convert.calibration.products import product_type
from convert.quantization.mixtures import QUICK_MIXTURE, W4
from convert.quantization.quantize import quantize_rows
from convert.reference.reference import find_device
from convert.writing.plan import Plan

_TIMES_QUANTIZING = 1.7
"""A conversion takes that many times its quantization: it also reads, hashes and writes. Measured with the 10B."""

_OPERATIONS_BESIDES = 11_000
"""What rounding a weight takes besides products, in operations of the processor. Measured with a layer of the 10B."""

_SIZE = 2048
"""Rows and columns of the matrices that are tried."""

_TRIALS = 3
"""How often each is tried; the quickest counts."""


@dataclass(frozen=True)
class Speeds:
    """What a machine does in a second."""

    products: float
    """Floating point operations in products, in the type that W4's products are computed in."""

    float32: float
    """The same in float32."""

    processor: float
    """The same on the processor, where there is a GPU for the others."""

    weights: float
    """Weights quantized to Q4_K, by all threads."""


@dataclass(frozen=True)
class Durations:
    """Seconds."""

    converting: float
    """From the checkpoint to one output that is not rounded with compensation."""

    rounding: float
    """What W4 or W3 takes besides."""


def forecast(plan: Plan) -> str:
    """What the plan takes on this machine, and what the other way of making a 4-bit file would, in words."""
    return described(plan, estimate(plan, measure(plan.n_threads, find_device("auto"))))


def described(plan: Plan, durations: Durations) -> str:
    """The same for known durations."""
    mixtures = [planned.mixture for planned in plan.outputs]
    rounded = sum(mixture.compensated for mixture in mixtures)
    names = " and ".join(mixture.name for mixture in mixtures)
    text = f"{names}: about {_span(durations.converting + rounded * durations.rounding)} on this machine."
    if rounded:
        quick = _span(durations.converting)
        return f"{text} The quick way is {_chosen(QUICK_MIXTURE)}, about {quick}; it loses more of the model."
    if QUICK_MIXTURE in [mixture.name for mixture in mixtures]:
        better = _span(durations.converting + durations.rounding)
        return (
            f"{text} {W4.name} loses less of the model and is no larger, but takes about {better}: {_chosen(W4.name)}."
        )
    return text


def _chosen(name: str) -> str:
    return f"--quant {name} (make convert QUANT={name})"


def _span(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def estimate(plan: Plan, speeds: Speeds) -> Durations:
    """Estimate the conversion of a plan's checkpoint."""
    n_tokens = calibration_tokens(plan.hparams.hidden_size)
    products = float32 = 0
    for tensor in plan.tensors:
        if len(tensor.shape) == 2:
            n_rows, n_columns = tensor.shape
            sizes = [part.stop - part.start for part in column_parts(n_columns)]
            squares, cubes = (sum(size**power for size in sizes) for power in (2, 3))
            products += n_rows * squares
            float32 += n_tokens * squares + cubes // 3
            if tensor.name.startswith("blk."):
                products += 2 * 2 * n_tokens * n_rows * n_columns
            if tensor.name != "token_embd.weight" and follows(tensor.name, n_tokens, n_columns):
                products += 2 * (n_tokens + n_rows) * squares
                float32 += cubes
    quantizing = plan.n_weights / speeds.weights
    besides = _OPERATIONS_BESIDES * plan.n_weights / speeds.processor
    rounding = products / speeds.products + float32 / speeds.float32 + besides
    return Durations(_TIMES_QUANTIZING * quantizing, rounding)


def measure(n_threads: int, device: torch.device) -> Speeds:
    """Try out how fast this machine is, in a second or two."""
    return Speeds(
        _operations(product_type(device), device),
        _operations(torch.float32, device),
        _operations(torch.float32, torch.device("cpu")),
        n_threads * _weights(),
    )


def _operations(dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.ones(_SIZE, _SIZE, dtype=dtype, device=device) for _ in range(2))

    def multiply() -> None:
        (left @ right)[0, 0].item()  # which waits for a device

    return 2 * _SIZE**3 / _seconds(multiply)


def _weights() -> float:
    rows = np.random.default_rng(0).standard_normal((64, _SIZE), dtype=np.float32)
    return rows.size / _seconds(lambda: quantize_rows(rows, GGMLQuantizationType.Q4_K))


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of a few trials, after one that warms up."""
    work()
    return min(timeit.repeat(work, number=1, repeat=_TRIALS))
