"""`weblab-local doctor --self-test`: workers on loopback are the devices, sound ones and spoilt ones."""

import base64
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.demo.corpus import read_corpus
from tests.support.conversions import ROOT
from tests.support.workers import started_worker
from weblab_local.diagnosis import own_process
from weblab_local.diagnosis.device_run import UNKNOWN
from weblab_local.diagnosis.findings import DeviceMemory
from weblab_local.diagnosis.self_test import KNOWN, MEAN_KL, DeviceRun, judge

HEADER = 9
"""Bytes before a message of the RPC protocol: its kind, and its length in eight bytes."""

SET_TENSOR, LARGE = 6, 20_000
"""The kind of the messages that carry weights (`enum rpc_cmd`), and the bytes that the larger ones have at least."""

CPU = DeviceMemory("CPU", "some processor", "cpu", "CPU", 2**34, 2**34)
CARD = DeviceMemory("CUDA0", "some card", "gpu", "CUDA", 2**33, 2**33)


def on_one_cpu() -> None:
    """Let a process compute with one thread, so that little depends on the machine's load."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[-1:])


def doctor(*arguments: str, language: str = "en", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weblab_local", "--lang", language, "doctor", "--self-test", *arguments],
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        preexec_fn=on_one_cpu,
    )


Spoil = Callable[[bytearray], bool]
"""Changes a message that carries weights; False hangs up instead of sending it."""


@contextmanager
def between(worker: str, spoil: Spoil) -> Iterator[str]:
    """A worker's address at which another listens, and hands on what is said, the weights as `spoil` leaves them."""
    host, _, port = worker.partition(":")

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port))) as upstream:
            backward = threading.Thread(target=_copy, args=(upstream, client), daemon=True)
            backward.start()
            with suppress(OSError, EOFError):
                while True:
                    header = _exactly(client, HEADER)
                    message = bytearray(_exactly(client, int.from_bytes(header[1:], "little")))
                    if header[0] == SET_TENSOR and len(message) > LARGE and not spoil(message):
                        break
                    upstream.sendall(header + message)
            for one in (upstream, client):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            backward.join()

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def turned_around(message: bytearray) -> bool:
    """Flip a bit of every 97th byte, behind what says where the weights belong."""
    for at in range(1000, len(message), 97):
        message[at] ^= 0x40
    return True


def hung_up(_message: bytearray) -> bool:
    return False


@pytest.fixture(scope="module")
def tested() -> dict[str, Any]:
    """The JSON of a test of three workers: a sound one, one that spoils weights, one that dies; and how it ended."""
    with ExitStack() as stack:
        workers = [stack.enter_context(started_worker())[0] for _ in range(3)]
        spoilt = stack.enter_context(between(workers[1], turned_around))
        dying = stack.enter_context(between(workers[2], hung_up))
        done = doctor("--json", "--rpc", ",".join([workers[0], spoilt, dying]))
    report: dict[str, Any] = json.loads(done.stdout)
    return report | {"code": done.returncode, "stderr": done.stderr}


def test_the_known_answers_are_those_of_the_corpus() -> None:
    corpus = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
    assert KNOWN.items() <= corpus.items()
    assert not any(UNKNOWN[:10] in pair.prompt + pair.response for pair in read_corpus())


def test_the_cpu_is_the_first_device_and_right(tested: dict[str, Any]) -> None:
    cpu = tested["devices"][0]
    assert (cpu["kind"], cpu["ok"], cpu["problems"]) == ("cpu", True, [])
    assert cpu["right_answers"] == cpu["n_answers"] == len(KNOWN)
    assert cpu["mean_kl"] is None


def test_a_sound_device_computes_what_the_cpu_does(tested: dict[str, Any]) -> None:
    sound = tested["devices"][1]
    assert (sound["name"], sound["ok"], sound["crashed"], sound["n_layers"]) == ("RPC0", True, False, 5)
    assert sound["right_answers"] == len(KNOWN)
    assert sound["mean_kl"] < MEAN_KL / 10
    assert min(sound["prompt_speed"], sound["generation_speed"]) > 0
    assert sound["planned_memory"] == pytest.approx(sound["memory"], rel=0.03)


def test_a_device_whose_weights_are_wrong_is_wrong(tested: dict[str, Any]) -> None:
    spoilt = tested["devices"][2]
    assert (spoilt["name"], spoilt["ok"], spoilt["crashed"]) == ("RPC1", False, False)
    assert spoilt["right_answers"] < len(KNOWN) or spoilt["mean_kl"] > MEAN_KL
    assert spoilt["problems"]


def test_a_device_that_ends_the_process_is_a_row_and_not_the_end(tested: dict[str, Any]) -> None:
    dead = tested["devices"][3]
    assert (dead["name"], dead["ok"], dead["crashed"]) == ("RPC2", False, True)
    assert "exit code" in dead["problems"][0]
    assert dead["prompt_speed"] is dead["memory"] is None


def test_one_wrong_device_makes_the_command_fail(tested: dict[str, Any]) -> None:
    assert (tested["code"], tested["ok"], tested["error"]) == (1, False, "")
    assert "RPC1" in tested["stderr"]
    assert tested["versions"]["llama_cpp_python"]


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", ["CPU", "right", "no device but the CPU"]), ("ja", ["CPU", "正しい", "CPU 以外のデバイス"])],
)
def test_the_table_is_in_the_language_asked_for(language: str, said: list[str]) -> None:
    done = doctor(language=language)
    assert done.returncode == 0, done.stderr
    for text in said:
        assert text in done.stdout


def test_a_llama_cpp_that_ends_the_process_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("import os\nos.abort()\n")
    done = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "exit code" in done.stdout


def test_workers_are_for_the_self_test() -> None:
    command = [sys.executable, "-m", "weblab_local", "--lang", "en", "doctor", "--rpc", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--self-test" in done.stderr


def encoded(distributions: Any) -> str:
    return base64.b64encode(np.asarray(distributions, "<f4").tobytes()).decode()


RIGHT = DeviceRun(
    answers=tuple(KNOWN.values()),
    distributions=encoded(np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])),
    n_positions=2,
    n_layers=5,
    prompt_speed=100.0,
    generation_speed=10.0,
    memory=10**6,
    planned_memory=10**6,
    warnings=(),
)


def test_a_run_that_equals_the_cpus_is_right() -> None:
    result = judge(CARD, DeviceRun.from_json(json.loads(json.dumps(RIGHT.as_json()))), RIGHT)
    assert (result.ok, result.mean_kl, result.run) == (True, 0.0, RIGHT)


def test_the_divergence_is_the_mean_of_the_positions() -> None:
    other = np.log([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]])
    result = judge(CARD, replace(RIGHT, distributions=encoded(other)), RIGHT)
    expected = (0.5 * math.log(0.5 / 0.4) + 2 * 0.25 * math.log(0.25 / 0.3)) / 2
    assert result.mean_kl == pytest.approx(expected, rel=1e-5)
    (problem,) = result.problems
    assert "mean KL" in problem


@pytest.mark.parametrize("distributions", [np.full((2, 3), np.nan), np.log(np.full((2, 4), 0.25))])
def test_what_is_no_distribution_is_wrong_and_still_json(distributions: Any) -> None:
    result = judge(CARD, replace(RIGHT, distributions=encoded(distributions)), RIGHT)
    assert not result.ok
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["mean_kl"] is None


def test_a_word_that_differs_is_wrong_and_shown() -> None:
    answers = (*RIGHT.answers[:-1], "Hi! It's nice to meat you.")
    result = judge(CPU, replace(RIGHT, answers=answers), None)
    assert (result.ok, result.right_answers, result.n_answers) == (False, len(KNOWN) - 1, len(KNOWN))
    assert "meat" in result.problems[0]


def test_layers_that_did_not_get_there_are_a_problem() -> None:
    result = judge(CARD, replace(RIGHT, warnings=("They run on the CPU.",)), RIGHT)
    assert (result.ok, result.problems) == (False, ("They run on the CPU.",))


def test_a_process_that_says_nothing_sensible_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from weblab_local.diagnosis import self_test as module

    said = iter([json.dumps({"devices": [vars(CPU)], "llama_cpp": "", "ggml": "", "system_info": ""}), "[nonsense"])
    monkeypatch.setattr(own_process, "run", lambda *_: own_process.Ended(next(said), "", crashed=False))
    tested = module.self_test((), lambda _: None)
    assert not tested.ok
    assert "nonsense" in tested.results[0].problems[0]


def test_in_a_frozen_program_the_executable_itself_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyInstaller sets sys.frozen, and sys.executable is the program: here the script that pip makes of it."""
    monkeypatch.setattr(sys, "executable", str(Path(sys.executable).with_name("weblab-local")))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    ended = own_process.run(["self-test-device"], 60)
    assert (ended.error, ended.crashed) == ("", False)
    assert json.loads(ended.stdout)["devices"][0]["kind"] == "cpu"
