"""Speed of several files of one model by turns: tokens per second of the prompt and of the answer, and ratios.

    python -m tests.benchmarks.mixture_speed FILE... [--rounds 3] [--prompt 128] [--tokens 32]

FILE: one checkpoint converted to several mixtures; the first file is what the others are compared with. Each is loaded
anew in each round, computes the same random prompt and an answer that cannot end.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams


def speeds(path: Path, ids: list[int], n_tokens: int) -> tuple[float, float]:
    """Tokens per second of the prompt and of the answer."""
    with closing(Engine(path, n_ctx=len(ids) + n_tokens)) as engine:
        params = SamplingParams(temperature=0, max_tokens=n_tokens, logit_bias={0: -float("inf")})
        times, counts = [time.perf_counter()], [0]
        for chunk in engine.stream(ids, params, raw=True):
            times.append(time.perf_counter())
            counts.append(len(chunk.token_ids))
    return len(ids) / (times[1] - times[0]), sum(counts[2:]) / (times[-1] - times[1])


def main() -> None:
    """Measure all by turns, print the table."""
    parser = argparse.ArgumentParser(description="Speed of several files of one model by turns.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--prompt", type=int, default=128, help="tokens; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=32, help="of the answer; default: %(default)s")
    arguments = parser.parse_args()
    ids = random.Random(0).choices(range(100, 2000), k=arguments.prompt)
    found: dict[Path, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for path in arguments.files:
            found[path].append(speeds(path, ids, arguments.tokens))
    print("| file | bytes | prompt, tokens/s | answer, tokens/s | ratio, median | lowest | highest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in arguments.files:
        prompt, answer = (statistics.median(column) for column in zip(*found[path], strict=True))
        first = found[arguments.files[0]]
        ratios = [mine[1] / its[1] for mine, its in zip(found[path], first, strict=True)]
        cells = [path.name, f"{path.stat().st_size:,}", f"{prompt:.1f}", f"{answer:.2f}"]
        cells += [f"{figure:.2f}" for figure in (statistics.median(ratios), min(ratios), max(ratios))]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
