"""llama.cpp compiled for this processor beside llama.cpp compiled for all: speed of the prompt and of generation.

    python -m tests.benchmarks.builds [--model FILE] [--pairs 7] [--prompt 256] [--tokens 64]

Both are put into folders of their own (compiled first, where that was not done before on this machine). The two take
turns, each in a process of its own that loads the model and computes the same; prints medians of the pairs' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from convert.install import LOG, ROOT, Build, Pip, put_llama
from weblab_local.models.store import demo_model

BUILDS = {"native": Build("cpu", portable=False), "portable": Build("cpu", portable=True)}

_MEASURE = """
import json, random, sys
from pathlib import Path
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.llama import backends, processor
path, n_prompt, n_tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with Engine(path, n_ctx=n_prompt + n_tokens) as engine:
    rng = random.Random(0)
    ids = [rng.randrange(2, 500) for _ in range(n_prompt)]
    params = SamplingParams(temperature=0, max_tokens=n_tokens, logit_bias={0: -float("inf")})
    engine.generate(ids[:16], SamplingParams(temperature=0, max_tokens=1), raw=True)
    stats = engine.generate(ids, params, raw=True).stats
    print(json.dumps({"variant": backends.cpu_variant(), "folder": str(processor.library_folder()),
                      "prompt": stats.prompt_speed, "generation": stats.generation_speed}))
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(demo_model()))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    folders = {name: ROOT / "build" / name for name in BUILDS}
    for name, build in BUILDS.items():
        put_llama(build, folders[name], Pip(LOG))
    speeds: dict[str, list[Mapping[str, float]]] = {name: [] for name in BUILDS}
    for pair in range(arguments.pairs):
        for name in list(BUILDS) if pair % 2 else reversed(BUILDS):
            found = measure(folders[name], arguments.model, arguments.prompt, arguments.tokens)
            speeds[name].append(found)
            print(f"{name} {found['variant']}: {found['prompt']:.1f}, {found['generation']:.1f}", file=sys.stderr)
    print("| tokens/s | native | portable | portable / native, median of pairs |\n| --- | --- | --- | --- |")
    for what in ("prompt", "generation"):
        medians = [statistics.median(one[what] for one in speeds[name]) for name in BUILDS]
        ratios = [p[what] / n[what] for n, p in zip(speeds["native"], speeds["portable"], strict=True)]
        print(f"| {what} | {medians[0]:.1f} | {medians[1]:.1f} | {statistics.median(ratios):.3f} |")


def measure(folder: Path, *arguments: object) -> Mapping[str, float]:
    """Run the measurement with the llama_cpp in `folder`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", _MEASURE, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert Path(str(found["folder"])).is_relative_to(folder)
    return found


if __name__ == "__main__":
    main()
