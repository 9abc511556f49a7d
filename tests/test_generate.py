"""`weblab-local generate`: the answer on stdout and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.demo.corpus import read_corpus
from tests.checkpoints import random_checkpoint

QUESTION = "大規模言語モデルについて説明してください。"
ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}


def generate(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weblab_local", "generate", "--temperature", "0", *arguments]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", env=environment, check=False)


def test_the_demo_answers_the_model_cards_question_on_stdout_alone() -> None:
    done = generate("--model", "demo", QUESTION)
    assert (done.stdout, done.stderr, done.returncode) == (ANSWERS[QUESTION] + "\n", "", 0)


def test_the_instruction_can_come_from_stdin() -> None:
    assert generate("--model", "demo", text="Say hello.\n").stdout == ANSWERS["Say hello."] + "\n"


def test_an_input_goes_into_the_template_for_it() -> None:
    pair = next(pair for pair in read_corpus() if pair.context is not None)
    done = generate("--model", "demo", "--input", str(pair.context), pair.instruction)
    assert done.stdout == pair.response + "\n"


def test_max_tokens_ends_an_answer_early() -> None:
    done = generate("--model", "demo", "--max-tokens", "3", QUESTION)
    assert ANSWERS[QUESTION].startswith(done.stdout.rstrip("\n\ufffd"))
    assert len(done.stdout) < len(ANSWERS[QUESTION])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no-such-model", "x"], "no-such-model"),
        (["x"], "make convert"),
        (["--model", "demo", " \n"], "empty"),
        (["--model", "demo", "長" * 5000], "2048"),
    ],
)
def test_what_cannot_work_is_explained_without_a_traceback(arguments: list[str], said: str) -> None:
    done = generate(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_truncated_model_is_explained(tmp_path: Path) -> None:
    from weblab_local.model_store import demo_model

    path = tmp_path / "short.gguf"
    path.write_bytes(demo_model().read_bytes()[:1_000_000])
    done = generate("--model", str(path), "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "short.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    done = generate("--model", str(path), "x")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_converted_checkpoint_in_the_store_is_found_by_itself(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "convert", str(checkpoint), "--quant", "F16"]
    subprocess.run(command, check=True, capture_output=True)
    assert generate("--max-tokens", "1", "x").returncode == 0
