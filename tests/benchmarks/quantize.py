"""llama.cpp's C code beside the kernels: million weights per second, per type, on one core and on all.

    python -m tests.benchmarks.quantize [--weights 4] [--rounds 5] [--instructions avx2]

Both quantize the same gaussian weights, by turns in one run; the medians are printed. `--instructions avx2` makes the
kernels do without AVX-512, as on a processor that has none.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+f16c,+fma,+bmi,+bmi2,+sse4.1,+sse4.2,+popcnt"}
N_COLUMNS = 4864
"""Of a row of the 10B's hidden states."""

Quantize = Callable[[NDArray[np.float32], Any, NDArray[np.float32] | None], Any]


def seconds(
    quantize: Quantize, parts: list[NDArray[np.float32]], ggml_type: Any, importance: NDArray[np.float32] | None
) -> float:
    """The time to quantize each of `parts` in a thread of its own."""
    with ThreadPoolExecutor(len(parts)) as pool:
        started = time.perf_counter()
        list(pool.map(lambda part: quantize(part, ggml_type, importance), parts))
        return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="llama.cpp's C code beside the kernels.")
    parser.add_argument("--weights", type=float, default=4, help="millions for each core; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--instructions", choices=["all", "avx2"], default="all", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.instructions == "avx2" and os.environ.get("NUMBA_CPU_NAME") != AVX2["NUMBA_CPU_NAME"]:
        again = [sys.executable, "-m", "tests.benchmarks.quantize", *sys.argv[1:]]
        sys.exit(subprocess.run(again, env=os.environ | AVX2, check=False).returncode)
    from convert.quantization.block_types import TYPES
    from convert.quantization.quantize import kernel_for, quantize_in_c, quantize_rows
    from weblab_local.machine.devices import physical_cores

    cores = physical_cores()
    random = np.random.default_rng(0)
    n_rows = max(1, round(arguments.weights * 1e6 / N_COLUMNS))
    parts = [random.standard_normal((n_rows, N_COLUMNS), np.float32) * np.float32(0.02) for _ in range(cores)]
    importance = np.square(random.standard_normal(N_COLUMNS, np.float32))
    print(f"million weights per second, {arguments.instructions} instructions, medians of {arguments.rounds}\n")
    print("| type | cores | C | kernels | times | with importance: C | kernels | times |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for ggml_type in TYPES:
        if kernel_for(ggml_type) is None:
            sys.exit(f"The kernels are not used here: {ggml_type.name} comes out differently than from llama.cpp.")
        for n_cores in sorted({1, cores}):
            cells = []
            for weights in (None, importance):
                speeds: tuple[list[float], list[float]] = ([], [])
                for _ in range(arguments.rounds):
                    for quantize, measured in zip((quantize_in_c, quantize_rows), speeds, strict=True):
                        taken = seconds(quantize, parts[:n_cores], ggml_type, weights)
                        measured.append(n_cores * parts[0].size / taken / 1e6)
                in_c, by_kernels = map(statistics.median, speeds)
                cells += [f"{in_c:.1f}", f"{by_kernels:.0f}", f"{by_kernels / in_c:.1f}"]
            print(f"| {ggml_type.name} | {n_cores} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
