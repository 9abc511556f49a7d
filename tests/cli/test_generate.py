"""`weblab-local generate`: the answer on stdout and nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte
import pytest
from gguf import GGUFWriter
from transformers import AutoTokenizer

from convert.demo.corpus import CHECKPOINT, read_corpus
from tests.support.checkpoints import random_checkpoint
from tests.support.command_line import CommandLine, Done
from tests.support.conversions import converted
from tests.support.systems import on_linux, on_posix
from tests.support.terminal import launch
from weblab_local.engine.engine import Engine
from weblab_local.models import loading
from weblab_local.models.store import demo_model, models_dir

CAPITAL = "日本の首都はどこですか？"
ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
WITH_INPUT = next(pair for pair in read_corpus() if pair.context is not None)
DEMO = ("--model", "demo", "--threads", "1")
GREEDY = (*DEMO, "--temperature", "0")


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "100")
    return CommandLine(monkeypatch, capsys)


def test_a_model_of_another_architecture_is_refused_by_name(weblab: CommandLine, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for command in (("generate", "x"), ("tokenize", "x"), ("chat",)):
        done = weblab(*command, "--model", tmp_path / "x.gguf")
        assert (done.code, done.stdout) == (1, "")
        assert "is a llama model; this program runs gptneox models only" in done.stderr


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.02, 0.5, 0.999999])
def test_a_truncated_model_is_refused_before_it_is_loaded(
    weblab: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("llama.cpp was asked to load it")

    monkeypatch.setattr("weblab_local.llama.context.Model", loaded)
    data = demo_model().read_bytes()
    (tmp_path / "短い.gguf").write_bytes(data[: int(share * len(data))])
    done = weblab("generate", "--model", tmp_path / "短い.gguf", "x")
    assert (done.code, done.stdout) == (1, "")
    assert str(tmp_path / "短い.gguf") in done.stderr


def test_generate_answers_on_stdout_alone(weblab: CommandLine) -> None:
    assert weblab("generate", *GREEDY, CAPITAL) == Done(0, ANSWERS[CAPITAL] + "\n", "")
    assert weblab("generate", *GREEDY, stdin=f"{CAPITAL}\n") == Done(0, ANSWERS[CAPITAL] + "\n", "")
    done = weblab("generate", *GREEDY, "--input", str(WITH_INPUT.context), WITH_INPUT.instruction)
    assert done == Done(0, WITH_INPUT.response + "\n", "")


def test_raw_takes_the_text_as_it_is(weblab: CommandLine) -> None:
    pair = next(pair for pair in read_corpus() if pair.instruction == CAPITAL)
    assert weblab("generate", *GREEDY, "--raw", pair.prompt).stdout == pair.response + "\n"
    assert weblab("generate", *GREEDY, "--raw", pair.prompt + "東京").stdout == "です。\n"


def test_json_has_the_answer_and_its_counts(weblab: CommandLine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    pair = next(pair for pair in read_corpus() if pair.instruction == CAPITAL)
    done = weblab("generate", *GREEDY, "--json", CAPITAL)
    assert (done.code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    result = json.loads(done.stdout)
    ids = tokenizer(pair.response, add_special_tokens=False)["input_ids"]
    assert (result["text"], result["token_ids"], result["finish_reason"]) == (pair.response, ids, "stop")
    stats = result["stats"]
    assert stats["completion_tokens"] == len(ids)
    assert stats["prompt_tokens"] == len(tokenizer(pair.prompt, add_special_tokens=False)["input_ids"])
    assert stats["cached_tokens"] == 0
    assert stats["prompt_speed"] == pytest.approx(stats["prompt_tokens"] / stats["prompt_seconds"])
    assert stats["generation_speed"] == pytest.approx((len(ids) - 1) / stats["generation_seconds"])


def generated(weblab: CommandLine, *arguments: str, prompt: str = "物語を書いてください。") -> dict[str, Any]:
    done = weblab("generate", *DEMO, "--json", *arguments, prompt)
    assert done.code == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_max_tokens_and_stop_end_an_answer(weblab: CommandLine) -> None:
    greedy = ("--temperature", "0")
    short = generated(weblab, *greedy, "--max-tokens", "2", prompt=CAPITAL)
    assert (short["finish_reason"], short["stats"]["completion_tokens"]) == ("length", 2)
    stopped = generated(weblab, *greedy, "--stop", "x", "--stop", "です", prompt=CAPITAL)
    assert (stopped["finish_reason"], stopped["text"]) == ("stop", "東京")
    full = generated(weblab, *greedy, "--n-ctx", "33", prompt=CAPITAL)
    assert (full["finish_reason"], full["stats"]["completion_tokens"]) == ("length", 2)


def test_the_sampling_options_have_their_effects(weblab: CommandLine) -> None:
    hot = ("--temperature", "50", "--max-tokens", "24", "--top-p", "1", "--top-k", "0", "--seed", "1")
    text = generated(weblab, *hot)["text"]
    greedy = generated(weblab, "--temperature", "0", "--max-tokens", "24")["text"]
    assert generated(weblab, *hot)["text"] == text != greedy
    assert generated(weblab, *hot[:-1], "2")["text"] != text
    for narrow in (["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]):
        assert generated(weblab, *hot, *narrow)["text"] == greedy
    endless = generated(weblab, "--temperature", "0", "--max-tokens", "60", "--repeat-penalty", "0.01")
    assert (endless["finish_reason"], endless["stats"]["completion_tokens"]) == ("length", 60)


def test_the_context_options_have_their_effects(weblab: CommandLine) -> None:
    done = weblab("generate", *GREEDY, "--n-ctx", "16", CAPITAL)
    assert (done.code, done.stdout) == (1, "")
    assert "16" in done.stderr
    for options in (["--kv-type", "q8_0"], ["--threads", "2"], ["--n-gpu-layers", "0"], ["--n-gpu-layers", "-1"]):
        assert weblab("generate", *GREEDY, *options, CAPITAL).stdout == ANSWERS[CAPITAL] + "\n"
    done = weblab("generate", *GREEDY, "--rpc", "127.0.0.1:1", CAPITAL)
    assert (done.code, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr


@on_posix
def test_the_answer_is_alone_on_stdout_when_stderr_is_a_terminal() -> None:
    terminal, stderr = os.openpty()
    try:
        # a prompt so long that reading it is worth a progress line
        command = launch("generate", *GREEDY, "--max-tokens", "4", "長い話をします。" * 60)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8", check=True)
        shown = os.read(terminal, 100_000).decode()
    finally:
        os.close(stderr)
        os.close(terminal)
    assert "\x1b" not in done.stdout
    assert "tokens" not in done.stdout
    assert done.stdout.count("\n") == 1
    assert re.search(r"reading \d+ of \d+ tokens", shown)
    screen = pyte.Screen(80, 10)
    pyte.Stream(screen).feed(shown)
    assert not "".join(screen.display).strip()  # it is gone at the end


@on_linux
@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_ends_generate_with_130_and_what_there_is(as_json: bool) -> None:
    options = ["--json"] if as_json else []
    command = launch("generate", *GREEDY, "--repeat-penalty", "0.01", "--max-tokens", "2000", *options, "話して。")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if as_json:
            _wait_until_it_computes(process)
            first = ""
        else:
            first = process.stdout.read(len("なさい。"))
        process.send_signal(signal.SIGINT)
        stdout, stderr = first + process.stdout.read(), process.stderr.read()
    assert (process.returncode, stderr) == (130, "")
    if as_json:
        result = json.loads(stdout)
        assert result["finish_reason"] == "cancelled"
        assert len(result["token_ids"]) == result["stats"]["completion_tokens"] < 1999
    else:
        assert stdout.startswith("なさい。")
        assert stdout.endswith("\n")


@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_cancels_the_loading(weblab: CommandLine, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    real_load, before = loading.load, signal.getsignal(signal.SIGINT)

    def load(*arguments: Any, on_progress: Callable[[float], None], **options: Any) -> Engine:
        def pressed(share: float) -> None:
            if late == (share == 1):
                signal.raise_signal(signal.SIGINT)
            if not late:
                on_progress(share)

        return real_load(*arguments, on_progress=pressed, **options)

    monkeypatch.setattr(loading, "load", load)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert weblab("generate", *GREEDY, CAPITAL) == Done(130, "", "")
    finally:
        signal.signal(signal.SIGINT, before)


def _wait_until_it_computes(process: subprocess.Popen[str]) -> None:
    """Until the engine's worker thread is there and has taken up the request: it has used processor time."""
    tasks = Path(f"/proc/{process.pid}/task")
    while process.poll() is None:
        for task in tasks.iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            if task.name != str(process.pid) and int(fields[11]) > 20:
                return
    raise AssertionError("it ended before it could be interrupted")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = launch("generate", *GREEDY, "--repeat-penalty", "0.01", "--max-tokens", "2000", "話して。")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait() == 1


def test_the_demo_answers_the_model_cards_question_in_a_process_of_its_own() -> None:
    question = "大規模言語モデルについて説明してください。"
    done = subprocess.run(launch("generate", *GREEDY, question), capture_output=True, encoding="utf-8", check=False)
    assert (done.stdout, done.stderr, done.returncode) == (ANSWERS[question] + "\n", "", 0)


def test_a_converted_checkpoint_in_the_store_is_found_by_itself(weblab: CommandLine, tmp_path: Path) -> None:
    converted(random_checkpoint(tmp_path / "tiny"), models_dir(), "F16")
    assert weblab("generate", "--max-tokens", "1", "--n-ctx", "32", "--raw", "x").code == 0


def in_a_shell(line: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A line of shell in which "$@" is `weblab-local` with these arguments."""
    command = ["bash", "-c", line, "weblab-local", sys.executable, "-m", "weblab_local", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


@on_posix
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", *GREEDY, CAPITAL),
        ("generate", *GREEDY, "--json", CAPITAL),
        ("tokenize", *DEMO[:2], CAPITAL * 2000),
        ("doctor",),
        ("doctor", "--json"),
        ("--help",),
    ],
)
def test_a_reader_that_goes_away_ends_it_quietly(arguments: tuple[str, ...]) -> None:
    done = in_a_shell('"$@" | true; exit ${PIPESTATUS[0]}', *arguments)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert done.returncode in (0, 1)


@on_posix
@pytest.mark.parametrize(
    ("line", "arguments", "code"),
    [
        ('"$@" >&-', ("generate", *GREEDY, CAPITAL), 0),
        ('"$@" 2>&-', ("generate", *GREEDY, CAPITAL), 0),
        ('"$@" <&-', ("generate", *GREEDY), 1),
        ('"$@" <&-', ("chat", *GREEDY), 0),
        ('"$@" >&- 2>&- <&-', ("generate", *GREEDY), 1),
        ('"$@" >&-', ("--help",), 0),
        ('"$@" >/dev/full', ("generate", *GREEDY, CAPITAL), 1),
    ],
)
def test_closed_or_full_streams_are_no_crash(line: str, arguments: tuple[str, ...], code: int) -> None:
    done = in_a_shell(line, *arguments)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


@on_posix
def test_what_is_no_utf8_on_stdin_is_refused_with_its_reason() -> None:
    done = in_a_shell('"$@"', "generate", *GREEDY, stdin="日本".encode("cp932"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"UTF-8" in done.stderr
