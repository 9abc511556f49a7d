"""`weblab-local serve` beside other servers: total tokens per second, time to the first token, and what failed.

    pip install "llama-cpp-python[server]"
    python -m tests.benchmarks.serve [--model FILE] [--tokens 48] [--rounds 3] [--cpu-time] [--no-mixed]
        [--peers llama-server,llama_cpp.server]

llama-server is llama.cpp's own, which batches too (`llama_server` compiles it once); llama_cpp.server computes one
answer at a time. All have the same model, threads, batch and context, and the first two as many sequences, which share
it. They stream greedy completions of the same prompts to 1, 2, 4 and 8 clients at once, each of them asking REQUESTS
times. They are started by turns, each alone on the machine. The speed is that of all answers together that came to
their end, from the first request to the end of the last answer; with `--cpu-time` it is by the server's processor
time, with one thread, which other programs hardly change. The times to the first token are the clock's.

The mixed load, for the servers that batch, has short and long prompts and `max_tokens` 1000, for which the context has
no room in that many answers at once. The demo ends its answers by itself; of a model of random weights, a client leaves
when it has had so many pieces of text as an answer may be long, and each piece counts as a token.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from convert.demo.corpus import read_corpus
from tests.benchmarks.llama_server import llama_server
from weblab_local.engine.engine import DEFAULT_N_CTX, Engine
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.machine.devices import physical_cores
from weblab_local.machine.footprint import CPU_BATCH
from weblab_local.models.store import demo_model

CLIENTS = (1, 2, 4, 8)
REQUESTS = 3
START_SECONDS = 600
OURS, LLAMA_SERVER, LLAMA_CPP_SERVER = "weblab-local", "llama-server", "llama_cpp.server"

MIXED_CLIENTS = (4, 8)
MIXED_MAX_TOKENS = 1000
LONG_NUMBERS = 120
"""Numbers in a long prompt, of about four tokens each."""
LEFT_AFTER = range(20, 300)
"""Pieces of text after which a client of the mixed load leaves."""


@dataclass(frozen=True)
class Task:
    """A prompt, and how many tokens its answer has, which ends by `max_tokens` or, for the demo, by itself.

    Of one that `leaves`, so many pieces are read.
    """

    prompt: str
    n_tokens: int
    max_tokens: int
    leaves: bool = False


def tasks(model: Path, max_tokens: int) -> list[Task]:
    """One for each request of the largest run, no two alike."""
    n_tasks = max(CLIENTS) * REQUESTS
    if model != demo_model():
        words = random.Random(0)
        texts = [f"{words.randrange(10**6)}について説明してください。" for _ in range(n_tasks)]
        return [Task(instruction_prompt(text), max_tokens, max_tokens) for text in texts]
    pairs = sorted((pair for pair in read_corpus() if pair.context is None), key=lambda pair: -len(pair.response))
    return _of_demo(model, [(pair.prompt, pair.response) for pair in pairs[:n_tasks]], 256)


def mixed_tasks(model: Path) -> list[Task]:
    """The same for the mixed load: a short prompt, a long one, and so on."""
    n_tasks = max(CLIENTS) * REQUESTS
    if model != demo_model():
        draw = random.Random(1)
        numbers = [[draw.randrange(10**6) for _ in range(1 if i % 2 else LONG_NUMBERS)] for i in range(n_tasks)]
        texts = ["、".join(map(str, some)) + "について説明してください。" for some in numbers]
        return [Task(instruction_prompt(text), draw.choice(LEFT_AFTER), MIXED_MAX_TOKENS, True) for text in texts]
    pairs = sorted(read_corpus(), key=lambda pair: len(pair.prompt))
    alternating = [pair for two in zip(pairs, reversed(pairs), strict=True) for pair in two]
    return _of_demo(model, [(pair.prompt, pair.response) for pair in alternating[:n_tasks]], MIXED_MAX_TOKENS)


def _of_demo(model: Path, pairs: Sequence[tuple[str, str]], max_tokens: int) -> list[Task]:
    with Engine(model, n_ctx=16) as engine:
        return [Task(prompt, len(engine.tokenize(response)), max_tokens) for prompt, response in pairs]


def command(server: str, model: Path, port: int, n_threads: int) -> list[str]:
    """The command line of a server."""
    threads, n_ctx, batch, most = (str(n) for n in (n_threads, DEFAULT_N_CTX, CPU_BATCH, max(CLIENTS)))
    where = ["--model", str(model), "--port", str(port)]
    if server == OURS:
        options = ["--threads", threads, "--n-ctx", n_ctx, "--parallel", most]
        return [sys.executable, "-m", "weblab_local", "serve", *where, *options]
    if server == LLAMA_SERVER:
        options = ["--threads", threads, "--threads-batch", threads, "--ctx-size", n_ctx, "--flash-attn", "on"]
        options += ["--batch-size", batch, "--ubatch-size", batch, "--parallel", most, "--kv-unified"]
        return [str(llama_server()), *where, *options]
    options = ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", n_ctx]
    options += ["--n_batch", batch, "--n_ubatch", batch, "--flash_attn", "true", "--interrupt_requests", "false"]
    return [sys.executable, "-m", "llama_cpp.server", *where, *options]


@contextmanager
def running(server: str, model: Path, n_threads: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server; its address, once it answers, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command(server, model, port, n_threads), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    httpx2.get(f"{url}{'/health' if server == LLAMA_SERVER else '/v1/models'}").raise_for_status()
                    break
                except httpx2.HTTPError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{server} did not start") from None
                    time.sleep(0.2)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Answered:
    """When a request was sent, and when its pieces of text came, in seconds; whether it was ended by an error."""

    sent: float
    times: Sequence[float]
    n_tokens: int
    failed: bool


@dataclass(frozen=True)
class Figures:
    """Of one load: all answers' tokens per second together, median seconds to the first token, answers that failed."""

    speed: float
    first: float
    failed: int


async def ask(client: httpx2.AsyncClient, task: Task) -> Answered:
    """Stream one completion. Where it ends otherwise than was to be expected, its pieces count as its tokens."""
    body = {"prompt": task.prompt, "temperature": 0, "max_tokens": task.max_tokens, "stream": True}
    sent, times, reason = time.monotonic(), list[float](), ""
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
                for choice in event.get("choices", ()):
                    reason = choice["finish_reason"] or reason
                    if choice["text"]:
                        times.append(time.monotonic())
                if task.leaves and len(times) == task.n_tokens:
                    reason = "left"
                    break
    except httpx2.HTTPError:
        reason = ""
    whole = not task.leaves and reason == ("length" if task.n_tokens == task.max_tokens else "stop")
    return Answered(sent, times, task.n_tokens if whole else len(times), failed=not reason)


async def load(
    url: str, n_clients: int, every: Sequence[Task], processor_time: Callable[[], float] | None = None
) -> Figures:
    """Let so many clients ask, each its part of `every`. With `processor_time` the speed is by that, not the clock."""
    each_its_own = httpx2.Limits(max_keepalive_connections=0)  # llama-server closes connections that it said it keeps
    async with httpx2.AsyncClient(base_url=url, timeout=None, limits=each_its_own) as client:

        async def one(number: int) -> list[Answered]:
            return [await ask(client, task) for task in every[number * REQUESTS : (number + 1) * REQUESTS]]

        started = processor_time() if processor_time else 0.0
        done = [answer for found in await asyncio.gather(*map(one, range(n_clients))) for answer in found]
    begun = [answer for answer in done if answer.times]
    seconds = max(answer.times[-1] for answer in begun) - min(answer.sent for answer in done)
    if processor_time:
        seconds = processor_time() - started
    return Figures(
        speed=sum(answer.n_tokens for answer in done if not answer.failed) / seconds,
        first=statistics.median(answer.times[0] - answer.sent for answer in begun),
        failed=sum(answer.failed for answer in done),
    )


def table(peer: str, rows: Sequence[tuple[str, Sequence[Figures], Sequence[Figures]]]) -> str:
    """Rows of what was asked, our figures and the peer's, by rounds: medians, and the medians of the rounds' ratios."""

    def median(figures: Sequence[Figures], value: Callable[[Figures], float]) -> float:
        return statistics.median(map(value, figures))

    def cells(figures: Sequence[Figures]) -> str:
        speed, first = median(figures, lambda one: one.speed), median(figures, lambda one: one.first)
        return f"{speed:.1f} | {first:.3f} s | {sum(one.failed for one in figures)}"

    lines = [
        f"| clients | {OURS}, tokens/s | first token | failed | {peer}, tokens/s | first token | failed "
        "| ratio of tokens/s | of first tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, ours, theirs in rows:
        pairs = list(zip(ours, theirs, strict=True))
        speed, first = (statistics.median(map(ratio, pairs)) for ratio in (_speed_ratio, _first_ratio))
        lines.append(f"| {name} | {cells(ours)} | {cells(theirs)} | {speed:.2f} | {first:.2f} |")
    return "\n".join(lines)


def _speed_ratio(pair: tuple[Figures, Figures]) -> float:
    return pair[0].speed / pair[1].speed


def _first_ratio(pair: tuple[Figures, Figures]) -> float:
    return pair[0].first / pair[1].first


def main() -> None:
    """Print a table for each peer."""
    parser = argparse.ArgumentParser(description="weblab-local serve beside llama-server and llama_cpp.server.")
    parser.add_argument("--model", type=Path, default=demo_model(), help="a GGUF; default: the demo")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer, but the demo's; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, and its processor time for the speeds")
    parser.add_argument("--peers", default=f"{LLAMA_SERVER},{LLAMA_CPP_SERVER}", help="default: %(default)s")
    parser.add_argument("--no-mixed", action="store_true", help="leave the mixed load out, which takes longest")
    arguments = parser.parse_args()
    peers = arguments.peers.split(",")
    n_threads = 1 if arguments.cpu_time else physical_cores()
    every, mixed = tasks(arguments.model, arguments.tokens), mixed_tasks(arguments.model)
    found: dict[tuple[str, str], list[Figures]] = {}
    for number in range(arguments.rounds):
        for server in [OURS, *peers][:: -1 if number % 2 else 1]:
            with running(server, arguments.model, n_threads) as (url, process):

                def processor_time(process: psutil.Process = process) -> float:
                    times = process.cpu_times()
                    return float(times.user + times.system)

                clock = processor_time if arguments.cpu_time else None
                asyncio.run(load(url, 1, every[-REQUESTS:]))  # the first requests find cold caches
                loads = [(str(n), n, every) for n in CLIENTS]
                if server != LLAMA_CPP_SERVER and not arguments.no_mixed:
                    loads += [(f"{n}, mixed", n, mixed) for n in MIXED_CLIENTS]
                for name, n_clients, some in loads:
                    found.setdefault((server, name), []).append(asyncio.run(load(url, n_clients, some, clock)))
                    print(f"{server}, {name}: {found[server, name][-1]}", file=sys.stderr, flush=True)
    print(f"{arguments.model.name}, {n_threads} threads, medians of {arguments.rounds} rounds")
    for peer in peers:
        names = [name for server, name in found if server == peer]
        print(f"\n{table(peer, [(name, found[OURS, name], found[peer, name]) for name in names])}")


if __name__ == "__main__":
    main()
