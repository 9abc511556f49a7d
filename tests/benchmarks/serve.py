"""`weblab-local serve` beside `python -m llama_cpp.server`: total tokens per second and time to the first token.

    pip install "llama-cpp-python[server]"
    python -m tests.benchmarks.serve [--model FILE] [--tokens 48] [--rounds 3]

Both servers have the same model, threads, batch and context, and stream greedy completions of the same prompts to 1, 2,
4 and 8 clients at once, each of them asking REQUESTS times. They are started by turns, each alone on the machine. The
speed is that of all answers together, from the first token of the first to the end of the last.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from convert.demo.corpus import read_corpus
from weblab_local.engine.engine import DEFAULT_N_CTX, Engine
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.machine.devices import physical_cores
from weblab_local.machine.footprint import CPU_BATCH
from weblab_local.models.store import demo_model

CLIENTS = (1, 2, 4, 8)
REQUESTS = 3
START_SECONDS = 600
SERVERS = ("weblab-local", "llama_cpp.server")


@dataclass(frozen=True)
class Task:
    """A prompt, and how many tokens its answer has, which ends by `max_tokens` or, for the demo, by itself."""

    prompt: str
    n_tokens: int
    max_tokens: int


def tasks(model: Path, max_tokens: int) -> list[Task]:
    """One for each request of the largest run, no two alike."""
    n_tasks = max(CLIENTS) * REQUESTS
    if model != demo_model():
        words = random.Random(0)
        texts = [f"{words.randrange(10**6)}について説明してください。" for _ in range(n_tasks)]
        return [Task(instruction_prompt(text), max_tokens, max_tokens) for text in texts]
    pairs = sorted((pair for pair in read_corpus() if pair.context is None), key=lambda pair: -len(pair.response))
    with Engine(model, n_ctx=16) as engine:
        return [Task(pair.prompt, len(engine.tokenize(pair.response)), 256) for pair in pairs[:n_tasks]]


def command(server: str, model: Path, port: int) -> list[str]:
    """The command line of a server."""
    threads = str(physical_cores())
    if server == "weblab-local":
        options = ["--threads", threads, "--n-ctx", str(DEFAULT_N_CTX), "--queue", "16"]
        return [sys.executable, "-m", "weblab_local", "serve", "--model", str(model), "--port", str(port), *options]
    batch = str(CPU_BATCH)
    options = ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", str(DEFAULT_N_CTX)]
    options += ["--n_batch", batch, "--n_ubatch", batch, "--flash_attn", "true", "--interrupt_requests", "false"]
    return [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), *options]


@contextmanager
def running(server: str, model: Path) -> Iterator[str]:
    """Start a server; its address, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command(server, model, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    httpx2.get(f"{url}/v1/models").raise_for_status()
                    break
                except httpx2.HTTPError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{server} did not start") from None
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Answered:
    """When a request was sent, and when its first and last piece of text came, in seconds."""

    sent: float
    first: float
    last: float


async def ask(client: httpx2.AsyncClient, task: Task) -> Answered:
    """Stream one completion. Raises AssertionError where the answer is not as long as it should be."""
    body = {"prompt": task.prompt, "temperature": 0, "max_tokens": task.max_tokens, "stream": True}
    sent, times, reason = time.monotonic(), [], ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                reason = choice["finish_reason"] or reason
                if choice["text"]:
                    times.append(time.monotonic())
    assert reason == ("length" if task.n_tokens == task.max_tokens else "stop"), reason
    return Answered(sent, times[0], times[-1])


async def load(url: str, n_clients: int, every: Sequence[Task]) -> tuple[float, float]:
    """All answers' tokens per second together, and the median of the seconds to the first token."""
    async with httpx2.AsyncClient(base_url=url, timeout=None) as client:

        async def one(number: int) -> list[tuple[Task, Answered]]:
            mine = every[number * REQUESTS : (number + 1) * REQUESTS]
            return [(task, await ask(client, task)) for task in mine]

        done = [pair for found in await asyncio.gather(*map(one, range(n_clients))) for pair in found]
    seconds = max(answer.last for _, answer in done) - min(answer.first for _, answer in done)
    waited = statistics.median(answer.first - answer.sent for _, answer in done)
    return sum(task.n_tokens for task, _ in done) / seconds, waited


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="weblab-local serve beside llama_cpp.server.")
    parser.add_argument("--model", type=Path, default=demo_model(), help="a GGUF; default: the demo")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer, but the demo's; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    every = tasks(arguments.model, arguments.tokens)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for server in SERVERS:
            with running(server, arguments.model) as url:
                asyncio.run(load(url, 1, every[-REQUESTS:]))  # the first requests find cold caches
                for n_clients in CLIENTS:
                    found.setdefault((server, n_clients), []).append(asyncio.run(load(url, n_clients, every)))
    print(f"{arguments.model.name}, {physical_cores()} threads, medians of {arguments.rounds} rounds\n")
    print("| clients | weblab-local, tokens/s | first token | llama_cpp.server, tokens/s | first token | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n_clients in CLIENTS:
        ours, theirs = (found[server, n_clients] for server in SERVERS)
        ratio = statistics.median(a[0] / b[0] for a, b in zip(ours, theirs, strict=True))
        cells = [
            f"{statistics.median(speed for speed, _ in rows):.1f} | {statistics.median(s for _, s in rows):.3f} s"
            for rows in (ours, theirs)
        ]
        print(f"| {n_clients} | {cells[0]} | {cells[1]} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
