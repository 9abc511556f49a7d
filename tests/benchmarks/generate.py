"""This engine beside llama-cpp-python's `Llama`: speed, time to first token, memory; then several callers at once.

    python -m tests.benchmarks.generate [--model FILE] [--tokens 64] [--pairs 5] [--n-ctx 2048]

Every measurement is a process of its own that loads the model, holds a conversation of five turns (greedy, answers of a
fixed length, the same ids for all) and prints JSON; the processes of the peers alternate. `Llama, same` has this
engine's threads, batch, context, KV type and flash attention; `Llama, defaults` has its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from weblab_local.engine.engine import Engine
from weblab_local.engine.prompt import conversation_turn, first_turn
from weblab_local.engine.sampling import SamplingParams
from weblab_local.machine.devices import physical_cores
from weblab_local.machine.footprint import CPU_BATCH
from weblab_local.models.store import demo_model

PEERS = ("this engine", "Llama, same", "Llama, defaults")
TURNS = 5
ANSWER = 16
QUESTIONS = (
    "日本の首都はどこですか？",
    "その町の名物を教えてください。",
    "理由も説明してください。",
    "英語では？",
    "三行で。",
)


class OurEngine:
    """This engine, fed with ids."""

    def __init__(self, model: Path, n_ctx: int) -> None:
        self._engine = Engine(model, n_ctx=n_ctx)

    def tokenize(self, text: str) -> list[int]:
        return self._engine.tokenize(text)

    def stream(self, ids: list[int], n_tokens: int) -> Iterator[int]:
        params = SamplingParams(temperature=0, max_tokens=n_tokens, logit_bias={0: -float("inf")})
        for chunk in self._engine.stream(ids, params, raw=True):
            yield from chunk.token_ids


class PythonLlama:
    """llama-cpp-python's class, fed with ids."""

    def __init__(self, model: Path, **settings: Any) -> None:
        from llama_cpp import Llama

        self._llama = Llama(str(model), verbose=False, **settings)

    def tokenize(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def stream(self, ids: list[int], n_tokens: int) -> Iterator[int]:
        tokens = self._llama.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True)
        for _, token in zip(range(n_tokens), tokens, strict=False):
            self._llama.detokenize([token])
            yield int(token)


def make_peer(name: str, model: Path, n_ctx: int) -> OurEngine | PythonLlama:
    """Load `model` in one of the PEERS."""
    if name == "this engine":
        return OurEngine(model, n_ctx)
    if name == "Llama, defaults":
        return PythonLlama(model)
    threads = physical_cores()
    return PythonLlama(
        model,
        n_ctx=n_ctx,
        n_batch=CPU_BATCH,
        n_ubatch=CPU_BATCH,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
    )


def measure_peer(name: str, model: Path, n_tokens: int, n_ctx: int) -> dict[str, float]:
    """Tokens per second, seconds to the first token of turns 1 and 5, peak bytes that are not page cache."""
    peer = make_peer(name, model, n_ctx)
    ids: list[int] = []
    first_tokens = []
    for turn, question in enumerate(QUESTIONS):
        ids += peer.tokenize(conversation_turn(question) if turn else first_turn(question))
        started = time.perf_counter()
        answer: list[int] = []
        for token in peer.stream(ids, ANSWER):
            if not answer:
                first_tokens.append(time.perf_counter() - started)
            answer.append(token)
        ids += answer
    times = []
    for _ in peer.stream(ids, n_tokens):
        times.append(time.perf_counter())
    return {
        "speed": (len(times) - 1) / (times[-1] - times[0]),
        "first": first_tokens[0],
        "fifth": first_tokens[-1],
        "memory": float(_peak_memory()),
    }


def _peak_memory() -> int:
    """Anonymous memory of this process now, which after a run is its peak: nothing was given back."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "RssAnon" in line)
    return int(psutil.Process().memory_info().rss)


def measure_callers(model: Path, n_callers: int, n_tokens: int, n_ctx: int) -> float:
    """Tokens per second of all callers together while all of them decode."""
    cells = max(n_ctx, n_callers * (n_tokens + 64))
    with Engine(model, n_ctx=cells, n_parallel=n_callers) as engine:
        params = SamplingParams(temperature=0, max_tokens=n_tokens, logit_bias={0: -float("inf")})
        times: list[list[float]] = [[] for _ in range(n_callers)]

        def call(number: int) -> None:
            for chunk in engine.stream(f"{number}番目の質問です。", params):
                times[number] += [time.perf_counter()] * len(chunk.token_ids)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(n_callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    return sum(sum(begin < moment <= end for moment in t) for t in times) / (end - begin)


def measure_beside(model: Path, n_prompt: int) -> tuple[float, float]:
    """What reading prompts of `n_prompt` tokens beside a generation leaves of the speed of both.

    Returns the generation's tokens per second over those it has alone, then the prompts' over those alone.
    """
    endless = SamplingParams(temperature=0, max_tokens=4000, logit_bias={0: -float("inf")})
    one = SamplingParams(temperature=0, max_tokens=1)
    with Engine(model, n_parallel=2, n_ctx=n_prompt + 4200) as engine:

        def read(seed: int) -> float:
            ids = [100 + (seed + i * 7) % 1000 for i in range(n_prompt)]
            return engine.generate(ids, one, raw=True).stats.prompt_seconds

        read_alone = statistics.median(read(seed) for seed in range(3))
        times: list[float] = []

        def answer() -> None:
            while not ended.is_set():  # again where it came to the end of the model's context
                for chunk in engine.stream([5, 6, 7], endless, raw=True):
                    times.extend([time.perf_counter()] * len(chunk.token_ids))
                    if ended.is_set():
                        break

        ended = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        while len(times) < 32:
            time.sleep(0.01)
        began = time.perf_counter()
        beside = [read(seed) for seed in range(3, 6)]
        stopped = time.perf_counter()
        ended.set()
        thread.join()
    alone = [moment for moment in times if moment < began][1:]
    during = [moment for moment in times if began <= moment < stopped]
    generating = (len(during) / (stopped - began)) / ((len(alone) - 1) / (alone[-1] - alone[0]))
    return generating, read_alone / statistics.median(beside)


def measure_turns(model: Path, n_ctx: int, n_turns: int) -> list[tuple[float, int]]:
    """For each turn of a conversation that overflows: seconds to the first token, turns dropped."""
    with Engine(model, n_ctx=n_ctx) as engine:
        params = SamplingParams(temperature=0, max_tokens=ANSWER, logit_bias={0: -float("inf")})
        chat = engine.chat(params=params)
        replies = [chat.send(QUESTIONS[turn % len(QUESTIONS)]) for turn in range(n_turns)]
    return [(reply.stats.time_to_first_token, len(reply.dropped)) for reply in replies]


def measure_cancel(model: Path, n_prompt: int, n_ctx: int) -> float:
    """Seconds from cancelling in the middle of a prompt of `n_prompt` tokens to the end of the stream."""
    with Engine(model, n_ctx=n_ctx) as engine:
        reading = threading.Event()
        generation = engine.stream([100 + i % 1000 for i in range(n_prompt)], on_progress=lambda *_: reading.set())
        reading.wait()
        started = time.perf_counter()
        generation.cancel()
        for _ in generation:
            pass
        return time.perf_counter() - started


def in_a_process(*arguments: str) -> Any:
    """Run a measurement of this module in a process of its own; what it printed as JSON."""
    command = [sys.executable, "-m", "tests.benchmarks.generate", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=os.environ).stdout)


def compare(model: Path, n_tokens: int, pairs: int, n_ctx: int) -> None:
    """Print the table of the peers."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in PEERS}
    for _ in range(pairs):
        for name in PEERS:
            options = ["--tokens", str(n_tokens), "--n-ctx", str(n_ctx), "--model", str(model)]
            rows[name].append(in_a_process("--peer", name, *options))
    print("| | tokens/s | first token, turn 1 | first token, turn 5 | memory without page cache |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in rows.items():
        median = {key: statistics.median(row[key] for row in found) for key in found[0]}
        print(
            f"| {name} | {median['speed']:.2f} | {1000 * median['first']:.0f} ms | {1000 * median['fifth']:.0f} ms "
            f"| {median['memory'] / 1e9:.2f} GB |"
        )
    ratios = [a["speed"] / b["speed"] for a, b in zip(rows[PEERS[0]], rows[PEERS[1]], strict=True)]
    print(f"\nthis engine / Llama, same: {statistics.median(ratios):.3f} (median of {pairs} pairs)")


def scale(model: Path, n_tokens: int, n_ctx: int, callers: Sequence[int]) -> None:
    """Print the table of callers."""
    print("\n| callers | tokens/s together | of one caller's |")
    print("| --- | --- | --- |")
    alone = 0.0
    for n_callers in callers:
        options = ["--tokens", str(n_tokens), "--n-ctx", str(n_ctx), "--model", str(model)]
        speed = float(in_a_process("--callers", str(n_callers), *options))
        alone = alone or speed
        print(f"| {n_callers} | {speed:.2f} | {speed / alone:.2f} |")


def main() -> None:
    """Run one measurement for `--peer` or `--callers`, else all of them."""
    parser = argparse.ArgumentParser(description="This engine beside llama-cpp-python's Llama.")
    parser.add_argument("--model", type=Path, default=demo_model(), help="a GGUF; default: the demo")
    parser.add_argument("--tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--n-ctx", type=int, default=2048, help="default: %(default)s")
    parser.add_argument("--overflow-n-ctx", type=int, default=256, help="context of the long conversation")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--callers", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model, n_tokens, n_ctx = arguments.model, arguments.tokens, arguments.n_ctx
    if arguments.peer:
        print(json.dumps(measure_peer(arguments.peer, model, n_tokens, n_ctx)))
    elif arguments.callers:
        print(json.dumps(measure_callers(model, arguments.callers, n_tokens, n_ctx)))
    else:
        print(f"{model.name}, {physical_cores()} threads\n")
        compare(model, n_tokens, arguments.pairs, n_ctx)
        scale(model, n_tokens, n_ctx, (1, 2, 4, 8))
        turns = measure_turns(model, arguments.overflow_n_ctx, 20)
        shown = ", ".join(f"{1000 * seconds:.0f}" + (f" (dropped {n})" if n else "") for seconds, n in turns)
        print(f"\nms to the first token over 20 turns with n_ctx {arguments.overflow_n_ctx}: {shown}")
        generating, reading = measure_beside(model, 1000)
        print(
            f"\nprompts beside a generation: it has {generating:.2f} of its speed alone, they {reading:.2f} of theirs"
        )
        print(f"\ncancelling in a prompt of 1500 tokens took {measure_cancel(model, 1500, n_ctx):.2f} s")


if __name__ == "__main__":
    main()
