"""Print what the plan says before loading beside what llama.cpp reports after it, in MiB.

    python -m tests.benchmarks.memory [GGUF...] [--n-ctx 2048,8192] [--n-gpu-layers 0,3,-1]

Without a GGUF: the demo. A full-width model of two layers is made in a minute:
    python -m tests.benchmarks.synthetic build/synth-2 --layers 2 --shards 1
    python -m convert build/synth-2 --quant Q4_K_M --output build/synth
With --n-gpu-layers other than 0 and no GPU, a worker on loopback is started to be the other device.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weblab_local.machine.devices import list_devices
from weblab_local.machine.offload import offload_targets
from weblab_local.models.loading import load
from weblab_local.models.store import demo_model

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"n_parallel": 4},
    {"kv_type": "q8_0"},
    {"flash_attention": False},
    {"repack": False},
)

_WORKER = "from weblab_local.cli.rpc_worker import run; run('127.0.0.1', 0, None, False)"


@contextmanager
def worker() -> Iterator[str]:
    """A worker in another process, by its address."""
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[2]
        finally:
            process.kill()


def compare(path: Path, rpc: tuple[str, ...], options: dict[str, Any]) -> float:
    """Load once, print a line, and return how far the plan's sum is from llama.cpp's, as a share of it."""
    with load(str(path), rpc=rpc if options["n_gpu_layers"] else (), **options) as engine:
        assert engine.plan is not None
        assert engine.placement is not None
        planned, reported = engine.plan.placement, engine.placement
    columns = []
    for kind in ("weights", "kv", "compute"):
        sums = [sum(getattr(placement, kind).values()) / 2**20 for placement in (planned, reported)]
        columns.append(f"{sums[0]:9.2f} {sums[1]:9.2f}")
    error = planned.total / reported.total - 1
    described = ", ".join(f"{key}={value}" for key, value in options.items())
    print(f"{'  '.join(columns)}  {error:+8.3%}  {described}", flush=True)
    return error


def main() -> None:
    """Run the command line; exit with 1 when a plan is off by more than 3%."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path, nargs="*", default=[demo_model()])
    parser.add_argument("--n-ctx", default="2048,8192")
    parser.add_argument("--n-gpu-layers", default="0")
    args = parser.parse_args()
    lengths = [int(text) for text in args.n_ctx.split(",")]
    layers = [int(text) for text in args.n_gpu_layers.split(",")]
    errors = []
    with worker() if any(layers) and not offload_targets(list_devices()) else _nobody() as address:
        for path in args.gguf:
            print(f"{path.name}\n{'weights':>19}  {'KV cache':>19}  {'compute':>19}")
            print("  ".join(["  planned  reported"] * 3) + "       sum")
            for n_gpu_layers, n_ctx, options in itertools.product(layers, lengths, SETTINGS):
                where = (address,) if address else ()
                errors.append(compare(path, where, {"n_gpu_layers": n_gpu_layers, "n_ctx": n_ctx, **options}))
    worst = max(errors, key=abs)
    print(f"worst: {worst:+.3%}")
    sys.exit(abs(worst) > 0.03)


@contextmanager
def _nobody() -> Iterator[str]:
    yield ""


if __name__ == "__main__":
    main()
