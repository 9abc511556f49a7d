"""One well-behaved client beside all that others can do to a server: its speed, the server's memory, what was lost.

    python -m tests.benchmarks.soak [--minutes 30]

A server on the demo in a process of its own. One client asks the demo's own questions greedily, one after the other,
and compares every answer with what the demo knows by heart. Beside it, each method of Trouble is called in a thread of
its own, with about PAUSE seconds between two calls: clients that leave, bodies that are large or wrong, readers that do
not read, costly schemas, headers a byte at a time; and in the server's process a conversation is saved with its KV
state. First and last, a minute each, the client is alone. Prints the client's tokens per second in windows of WINDOW
seconds as a share of what it has alone, the server's anonymous memory, and the answers that were not right.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from convert.demo.corpus import Pair, read_corpus
from tests.benchmarks.measure import anonymous_memory

N_PARALLEL = 8
PAUSE = 2.0
WINDOW = 20.0
ALONE_SECONDS = 60.0
SLOW_SECONDS = 10.0
TIMEOUT = 120.0


@dataclass
class Client:
    """The well-behaved one. `tokens` has (time of an answer's end, its tokens)."""

    port: int
    pairs: list[Pair]
    tokens: list[tuple[float, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until `stop`."""
        with httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=TIMEOUT) as http:
            while not self.stop.is_set():
                pair = random.choice(self.pairs)
                body = {"messages": [{"role": "user", "content": pair.instruction}], "temperature": 0}
                done = http.post("/v1/chat/completions", json=body)
                if (
                    done.status_code != 200
                    or (text := done.json()["choices"][0]["message"]["content"]) != pair.response
                ):
                    self.wrong.append(f"{done.status_code} {pair.instruction}: {done.text[:200]}")
                    continue
                self.tokens.append((time.monotonic(), done.json()["usage"]["completion_tokens"]))
                assert text

    def speeds(self, start: float, stop: float) -> list[float]:
        """Tokens per second in each whole window between two times."""
        n_windows = int((stop - start) / WINDOW)
        sums: Counter[int] = Counter()
        for when, n_tokens in self.tokens:
            sums[int((when - start) // WINDOW)] += n_tokens
        return [sums[window] / WINDOW for window in range(n_windows)]


def chat(content: object, **more: object) -> dict[str, object]:
    """A request for a chat completion."""
    return {"messages": [{"role": "user", "content": content}], **more}


class Trouble:
    """What others do to the server on `port`; each method is one act and returns what came of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._bodies: dict[str, bytes] = {}
        """Written once: this process is not to take the processor from the server."""
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT)

    def leaves_while_its_prompt_is_read(self) -> str:
        """Departs some milliseconds after a long prompt was sent."""
        return self._leave(chat("長い文章。" * 150, stream=True), random.uniform(0.002, 0.05))

    def leaves_in_the_middle_of_an_answer(self) -> str:
        """Departs after the answer has begun."""
        return self._leave(chat("大規模言語モデルについて説明してください。", stream=True, max_tokens=500), 0.1)

    def sends_a_megabyte_of_spaces(self) -> str:
        """What llama.cpp tokenizes in quadratic time."""
        return self._post("spaces", lambda: chat((" " * 9 + "a") * 100_000))

    def sends_a_megabyte_of_empty_parts(self) -> str:
        """What a validator could list hundreds of thousands of errors for."""
        return self._post("parts", lambda: chat([{}] * 340_000))

    def sends_no_json(self) -> str:
        """Half a body."""
        return self._send(b'{"messages": [' + b"1," * 400_000)

    def does_not_read_its_stream(self) -> str:
        """Five answers with log-probabilities, never read."""
        body = chat("日本で一番高い山は何ですか。", stream=True, n=5, logprobs=True, top_logprobs=20, max_tokens=200)
        return self._leave(body, SLOW_SECONDS)

    def asks_with_a_costly_schema(self) -> str:
        """1,400 values that begin alike."""
        schema = {"enum": [f"共通の始まり {n}" for n in range(1400)]}
        form = {"type": "json_schema", "json_schema": {"name": "choice", "schema": schema}}
        return self._post("schema", lambda: chat("一つ選んでください。", response_format=form, max_tokens=24))

    def sends_a_header_byte_by_byte(self) -> str:
        """Holds a connection as long as the server lets it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as connection:
            for byte in b"GET /health HTTP/1.1\r\nX-Long: " + b"x" * 400:
                try:
                    connection.sendall(bytes([byte]))
                    connection.settimeout(0.5)
                    if not connection.recv(100):
                        return "cut off"
                except TimeoutError:
                    continue
                except OSError:
                    return "cut off"
            return "still open"

    def _post(self, name: str, body: Callable[[], object]) -> str:
        if name not in self._bodies:
            self._bodies[name] = json.dumps(body(), separators=(",", ":"), ensure_ascii=False).encode()
        return self._send(self._bodies[name])

    def _send(self, body: bytes) -> str:
        done = self.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        return str(done.status_code)

    def _leave(self, body: Mapping[str, object], seconds: float) -> str:
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
            time.sleep(seconds)
        return "left"

    @property
    def acts(self) -> Mapping[str, Callable[[], str]]:
        """Every kind of trouble by its name."""
        names = [name for name in vars(type(self)) if not name.startswith("_") and name != "acts"]
        return {name.replace("_", " "): getattr(self, name) for name in names}


def keep_on(name: str, act: Callable[[], str], outcomes: Counter[str], stop: threading.Event) -> None:
    """Repeat an act with PAUSE seconds between, and count what came of it."""
    while not stop.wait(PAUSE * random.uniform(0.5, 1.5)):
        try:
            outcome = act()
        except (httpx2.HTTPError, OSError) as error:
            outcome = type(error).__name__
        outcomes[f"{name}: {outcome}"] += 1


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    """The server in a process of its own: its port and process id."""
    command = [sys.executable, "-m", "tests.benchmarks.soak", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield port, process.pid
        finally:
            process.kill()


def serve() -> None:
    """Serve the demo, save a conversation with its KV state again and again, until killed."""
    from weblab_local import SamplingParams, load
    from weblab_local.chat.saved import save_session
    from weblab_local.server.app import create_app
    from weblab_local.server.config import ServerConfig
    from weblab_local.server.serve import Server, listen

    config = ServerConfig(port=0)
    with load("demo", n_parallel=N_PARALLEL, n_ctx=4096) as engine, tempfile.TemporaryDirectory() as folder:
        server = Server(create_app(engine, config), listen(config), most_requests=N_PARALLEL + config.queue)
        ready = threading.Event()
        threading.Thread(target=server.run, args=(ready.set,), daemon=True).start()
        ready.wait()
        print(server.port, flush=True)
        talk = engine.chat()
        while True:
            talk.send("日本の首都はどこですか？", SamplingParams(temperature=0.0, max_tokens=32))
            save_session(talk, Path(folder) / "saved", with_state=True)
            if len(talk.turns) > 8:
                talk = engine.chat()
            time.sleep(PAUSE)


def soak(minutes: float) -> None:
    """Run it, and print what is asked for."""
    pairs = [pair for pair in read_corpus() if pair.context is None and pair.instruction]
    with server() as (port, pid):
        client = Client(port, pairs)
        asking = threading.Thread(target=client.run)
        asking.start()
        time.sleep(5)  # what is only slow once
        before = time.monotonic()
        time.sleep(ALONE_SECONDS)
        began = time.monotonic()
        outcomes: Counter[str] = Counter()
        ending = threading.Event()
        acts = Trouble(port).acts
        threads = [threading.Thread(target=keep_on, args=(*act, outcomes, ending)) for act in acts.items()]
        for thread in threads:
            thread.start()
        memory = []
        while time.monotonic() - began < minutes * 60:
            time.sleep(min(WINDOW, max(0.1, minutes * 60 - (time.monotonic() - began))))
            memory.append(anonymous_memory(pid))
        ended = time.monotonic()
        ending.set()
        for thread in threads:
            thread.join()
        calm = time.monotonic()
        time.sleep(ALONE_SECONDS)
        after = time.monotonic()
        client.stop.set()
        asking.join()
        alone = statistics.median([*client.speeds(before, began), *client.speeds(calm, after)])
        report(client, alone, client.speeds(began, ended), memory, outcomes)


def report(client: Client, alone: float, beside: list[float], memory: list[int], outcomes: Counter[str]) -> None:
    """Print the table, then what came of each kind of trouble."""
    third = max(len(memory) // 3, 1)
    print("| | |\n| --- | --- |")
    print(f"| alone, tokens/s | {alone:.1f} |")
    print(f"| beside the others: median of {len(beside)} windows | {statistics.median(beside) / alone:.2f} of that |")
    print(f"| lowest window | {min(beside) / alone:.2f} of that |")
    print(f"| answers, of them not right | {len(client.tokens)}, {len(client.wrong)} |")
    print(f"| server's memory, first and last third at most | {max(memory[:third]) / 1e6:.1f}, ", end="")
    print(f"{max(memory[-third:]) / 1e6:.1f} MB |")
    print("\n| trouble | came of it | times |\n| --- | --- | --- |")
    for name, times in sorted(outcomes.items()):
        print("| " + " | ".join([*name.split(": ", 1), str(times)]) + " |")
    for line in client.wrong[:5]:
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        serve() if arguments.serve else soak(arguments.minutes)
