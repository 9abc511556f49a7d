"""RPC workers on loopback: what they take, and what happens when they are not what they should be.

Workers and clients are processes of their own: llama.cpp ends a process whose worker is gone.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import psutil
import pytest

from tests.support.conversions import ROOT
from tests.support.systems import on_posix
from tests.support.workers import started_worker
from weblab_local.cli.rpc_worker import run
from weblab_local.errors import WeblabError, WorkerError
from weblab_local.llama import compatibility
from weblab_local.machine import rpc

PROMPTS = [
    "大規模言語モデルについて説明してください。",
    "日本の首都はどこですか？",
    "俳句を一つ作ってください。",
    "Say hello.",
    "猫を三匹飼っている人に、旅行のあいだの世話を誰に頼めばよいか、理由とともに教えてください。" * 4,
]
"""The last is longer than a batch on the CPU."""

CLIENT = """
import json, sys
from weblab_local import SamplingParams, load
request = json.load(sys.stdin)
answers = []
for options in request["loads"]:
    with load("demo", **options) as model:
        greedy = SamplingParams(temperature=0, max_tokens=48)
        tokens = [model.generate(prompt, greedy).token_ids for prompt in request["prompts"]]
        plan, placement = model.plan, model.placement
        answers.append({
            "tokens": tokens,
            "layers": {device.description: share.n_layers for device, share in plan.pairs},
            "total": {device.description: device.total for device in plan.devices},
            "planned": vars(plan.placement),
            "reported": vars(placement),
            "warnings": model.warnings,
        })
json.dump(answers, sys.stdout)
"""

GONE = """
import os, signal, sys
from weblab_local import WorkerError, load
worker, pid = sys.argv[1], int(sys.argv[2])
with load("demo", rpc=[worker]) as model:
    assert model.plan.n_gpu_layers == 5
os.kill(pid, signal.SIGKILL)
sys.stdin.readline()  # the test has seen it end
try:
    load("demo", rpc=[worker])
except WorkerError as error:
    print(error)
with load("demo") as model:
    print(model.generate("日本の首都はどこですか？").finish_reason, model.plan.n_gpu_layers)
"""

FORKED = """
import gc, os, sys
from weblab_local import SamplingParams, load
model = load("demo", rpc=[sys.argv[1]])
ask = lambda: model.generate("日本の首都はどこですか？", SamplingParams(temperature=0)).text
before = ask()
child = os.fork()
if not child:
    model.close()
    del model
    gc.collect()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ask() == before)
model.close()
"""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(started_worker())[0] for _ in range(2)]


@pytest.fixture(scope="module")
def placements(workers: list[str]) -> dict[str, Any]:
    """The demo on the CPU alone, and with some or all of its layers on one or two workers."""
    loads: dict[str, dict[str, Any]] = {"cpu": {}}
    for name, n_gpu_layers in {"output": 1, "partial": 3, "full": -1, "auto": "auto"}.items():
        loads[name] = {"rpc": workers[:1], "n_gpu_layers": n_gpu_layers}
    loads["partial over two"] = {"rpc": workers, "n_gpu_layers": 4}
    loads["full over two"] = {"rpc": workers, "n_gpu_layers": -1}
    loads["without flash attention"] = {"rpc": workers[:1], "n_gpu_layers": 3, "flash_attention": False}
    loads["quantized cache"] = {"rpc": workers[:1], "n_gpu_layers": 3, "kv_type": "q8_0", "n_ctx": 4096}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        cwd=ROOT,
        input=json.dumps({"loads": list(loads.values()), "prompts": PROMPTS}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(loads, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    "name", ["output", "partial", "full", "auto", "partial over two", "full over two", "without flash attention"]
)
def test_layers_on_workers_give_the_cpus_tokens(name: str, placements: dict[str, Any]) -> None:
    assert all(placements["cpu"]["tokens"])
    assert placements[name]["tokens"] == placements["cpu"]["tokens"]
    assert placements[name]["warnings"] == []


def test_a_worker_is_a_device_with_its_own_memory(workers: list[str], placements: dict[str, Any]) -> None:
    assert placements["auto"]["total"] == {workers[0]: psutil.virtual_memory().total}
    assert placements["auto"]["layers"] == placements["full"]["layers"] == {workers[0]: 5}
    assert placements["partial"]["layers"] == {workers[0]: 3}
    assert placements["full over two"]["layers"] in ({workers[0]: 3, workers[1]: 2}, {workers[0]: 2, workers[1]: 3})
    assert placements["cpu"]["layers"] == {}


@pytest.mark.parametrize(
    "name",
    ["output", "partial", "full", "partial over two", "full over two", "without flash attention", "quantized cache"],
)
def test_llama_cpp_puts_on_a_worker_what_was_planned(name: str, placements: dict[str, Any]) -> None:
    planned, reported = placements[name]["planned"], placements[name]["reported"]
    for kind in ("weights", "kv", "compute"):
        assert planned[kind].keys() == reported[kind].keys()
    for buffer, size in reported["weights"].items():
        assert planned["weights"][buffer] == pytest.approx(size, rel=1e-4, abs=2**13)
    assert planned["kv"] == reported["kv"]
    total = sum(sum(buffers.values()) for buffers in planned.values())
    assert total == pytest.approx(sum(sum(buffers.values()) for buffers in reported.values()), rel=0.03)


@on_posix
def test_a_worker_that_is_gone_is_an_error_and_the_process_lives() -> None:
    with started_worker() as (address, worker):
        client = subprocess.Popen(
            [sys.executable, "-c", GONE, address, str(worker.pid)],
            cwd=ROOT,
            env=os.environ | {"LANGUAGE": "en"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with client:
            worker.wait(timeout=60)
            stdout, stderr = client.communicate("\n")
    assert client.returncode == 0, stderr
    assert f"The RPC worker {address} cannot be reached" in stdout
    assert stdout.splitlines()[-1] in ("stop 0", "length 0")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_takes_nothing_from_the_worker(workers: list[str]) -> None:
    """The thread that speaks with the worker is the parent's: a child that freed layers there would wait for ever."""
    options = ["-W", "ignore::DeprecationWarning"]  # Python 3.12 warns of forks beside other threads
    done = subprocess.run(
        [sys.executable, *options, "-c", FORKED, workers[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("7 True\n", "", 0)


@on_posix
def test_a_worker_says_one_line_and_ends_with_ctrl_c() -> None:
    with started_worker() as (address, worker):
        assert address.startswith("127.0.0.1:")
        worker.send_signal(signal.SIGINT)
        stdout, stderr = worker.communicate()
    assert stdout == ""
    assert "Starting RPC server" in stderr


def test_a_taken_port_is_an_error(workers: list[str]) -> None:
    with pytest.raises(WorkerError, match=r"Cannot listen on 127.0.0.1:\d+"):
        rpc.serve("127.0.0.1", int(workers[0].split(":")[1]), 1, lambda *_: None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_a_worker_stays_on_this_machine_unless_told_otherwise(host: str) -> None:
    with pytest.raises(WeblabError, match="--allow-network"):
        run(host, 0, 1, False)


def test_the_workers_version_of_the_protocol_is_the_one_that_is_expected(workers: list[str]) -> None:
    with socket.create_connection(rpc.parse_endpoint(workers[0])) as connection:
        connection.sendall(struct.pack("<BQ24x", 14, 24))
        answer = connection.recv(36, socket.MSG_WAITALL)
    assert tuple(answer[8:10]) == compatibility.rpc_protocol()


def test_a_worker_can_be_probed_again_and_again(workers: list[str]) -> None:
    for _ in range(3):
        rpc.probe(workers[0])


def test_an_unreachable_worker_is_an_error_that_says_how_to_start_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(WorkerError, match=f"127.0.0.1:{port} cannot be reached") as error:
            rpc.register([f"127.0.0.1:{port}"])
    assert f"weblab-local rpc-worker --port {port}" in error.value.remedy


def test_a_host_without_address_is_an_error() -> None:
    with pytest.raises(WorkerError, match="nowhere"):
        rpc.probe("nowhere.invalid:1")


def test_a_web_server_is_no_worker() -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # It waits for the end of a line, which a hello does not have.
        with pytest.raises(WorkerError, match="does not answer") as error:
            rpc.probe(f"127.0.0.1:{server.server_port}", timeout=0.3)
        assert "something else listens there" in error.value.remedy
        server.shutdown()


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server that reads a hello, sends `answer` and hangs up; with None it keeps quiet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(33, socket.MSG_WAITALL)
                if answer is not None:
                    connection.sendall(answer)
                else:
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n" * 4, b"\x1c" + bytes(7), bytes(36)])
def test_what_does_not_speak_the_protocol_is_no_worker(answer: bytes) -> None:
    with answering(answer) as address, pytest.raises(WorkerError, match="is no RPC worker"):
        rpc.probe(address)


def test_a_worker_that_keeps_quiet_may_be_busy() -> None:
    with answering(None) as address, pytest.raises(WorkerError, match="does not answer") as error:
        rpc.probe(address, timeout=0.2)
    assert "one at a time" in error.value.remedy


@pytest.mark.parametrize("version", [(6, 0, 0), (7, 1, 0), (8, 0, 0)])
def test_another_version_of_the_protocol_is_refused(version: tuple[int, int, int]) -> None:
    with (
        answering(struct.pack("<QBBB25x", 28, *version)) as address,
        pytest.raises(WorkerError, match="speaks version"),
    ):
        rpc.probe(address)


@pytest.mark.parametrize("endpoint", ["", ":1", "host:", "host:0", "host:99999", "host:x", "::1:50052", r"C:\x.gguf"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(WorkerError, match="host:port"):
        rpc.parse_endpoint(endpoint)


def test_the_port_may_be_left_out() -> None:
    assert rpc.parse_endpoint("10.0.0.2") == ("10.0.0.2", rpc.DEFAULT_PORT)
