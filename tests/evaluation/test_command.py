"""`weblab-local eval`: tables on stdout, the log, lm-eval's JSON, comparison, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.support import write_data
from tests.support.command_line import CommandLine
from weblab_local.cli import evaluate
from weblab_local.llama.context import Context
from weblab_local.machine.tuning import Setting, save_setting
from weblab_local.models.store import demo_model, models_dir

DEMO = ("--model", "demo", "--threads", "1")


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "100")
    return CommandLine(monkeypatch, capsys)


def rows(stdout: str) -> list[list[str]]:
    """The table's cells; the spaces around the dots of an interval part none."""
    return [line.replace(" .. ", "..").split() for line in stdout.splitlines() if line]


def test_a_suite_is_a_table_beside_the_cards_figures(weblab: CommandLine, small_data: Path) -> None:
    done = weblab("eval", *DEMO, "--data", small_data)
    assert done.code == 0
    header, *found = rows(done.stdout)
    assert header[-5:] == ["weblab-10b-instruction-sft", "weblab-10b", "GPTQ", "4", "bit"]
    assert [row[0] for row in found[:5]] == ["jcommonsenseqa", "jnli", "marc_ja", "jsquad", "average"]
    assert all(row[1] == "3" for row in found[:4])
    assert found[0][-3:] == ["74.35", "65.86", "73.19"]
    averages = [float(cell) for cell in found[4][-3:]]
    assert averages == pytest.approx([78.78, 66.38, 77.62], abs=0.011)  # those that the card gives itself
    mean = sum(float(row[2]) for row in found[:4]) / 4
    assert float(found[4][1]) == pytest.approx(mean, abs=0.01)


def test_questions_are_read_with_what_was_saved_for_prompts(
    weblab: CommandLine, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    original = Context.__init__

    def spy(self: Context, *arguments: Any, **options: Any) -> None:
        batches.append(options["n_batch"])
        original(self, *arguments, **options)

    monkeypatch.setattr(Context, "__init__", spy)
    log = tmp_path / "log.jsonl"
    command = ("eval", *DEMO, "--data", small_data, "--tasks", "jnli", "--fresh", "--log", log)
    found = []
    for setting in (None, Setting(1, repack=False, n_batch=96)):
        if setting is not None:
            save_setting(setting, "prompt")
        assert weblab(*command).code == 0
        lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
        found.append([choice for line in lines for choice in line["loglikelihoods"]])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert batches == [512, 96]


def test_the_larger_suites_averages_are_the_cards(weblab: CommandLine, small_data: Path) -> None:
    done = weblab("eval", *DEMO, "--data", small_data, "--suite", "jglue-8", "--limit", "1")
    average = next(row for row in rows(done.stdout) if row[0] == "average")
    assert average[-2:] == ["59.11", "50.74"]


def test_log_and_output_hold_prompts_answers_and_lm_evals_results(
    weblab: CommandLine, small_data: Path, tmp_path: Path
) -> None:
    files = ("--log", tmp_path / "log.jsonl", "--output", tmp_path / "out")
    weblab("eval", *DEMO, "--data", small_data, "--tasks", "jnli,jsquad", "--limit", "2", *files)
    chosen, _, generated, _ = map(json.loads, (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines())
    assert (chosen["task"], chosen["doc_id"], chosen["target"]) == ("jnli", 0, "contradiction")
    assert chosen["prompt"].endswith("前提：問1の前。\n仮説：問1の後。\n\n### 応答:\n")
    assert chosen["choices"] == ["entailment", "contradiction", "neutral"]
    best = max(chosen["loglikelihoods"])
    assert chosen["acc"] == float(chosen["loglikelihoods"].index(best) == 1)
    assert isinstance(generated["answer"], str)
    assert {"exact_match", "f1"} <= set(generated)
    (written,) = (tmp_path / "out").iterdir()
    results = json.loads(written.read_text(encoding="utf-8"))
    assert results["n-samples"]["jnli"] == {"original": 3, "effective": 2}
    assert {"acc,none", "acc_stderr,none"} <= set(results["results"]["jnli"])
    assert results["versions"] == {"jnli": "1.1", "jsquad": "1.1"}


def test_a_second_run_asks_nothing_and_fresh_asks_all(weblab: CommandLine, small_data: Path) -> None:
    command = ("eval", *DEMO, "--data", small_data, "--tasks", "jnli")
    first, second, fresh = weblab(*command), weblab(*command), weblab(*command, "--fresh")
    assert first.stdout == second.stdout == fresh.stdout
    assert "9/9" in first.stderr
    assert second.stderr == ""
    assert "9/9" in fresh.stderr


def test_an_interrupted_run_keeps_what_it_has(
    weblab: CommandLine, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_name: str, _kind: str, done: int, _total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    command = ("eval", *DEMO, "--data", small_data, "--tasks", "jnli")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_plain", interrupt)
        interrupted = weblab(*command)
    assert (interrupted.code, interrupted.stdout) == (130, "")
    assert "goes on there" in interrupted.stderr
    counts = [line.rpartition(" ")[2] for line in weblab(*command).stderr.splitlines()]
    assert counts == ["7/9", "8/9", "9/9"]


def test_two_models_of_the_store_are_compared_by_their_quantizations(weblab: CommandLine, small_data: Path) -> None:
    models_dir().mkdir(parents=True)
    for name in ("weblab-10b-Q8_0", "weblab-10b-Q4_K_M"):
        shutil.copy(demo_model(), models_dir() / f"{name}.gguf")
    done = weblab("eval", "--threads", "1", "--data", small_data, "--tasks", "jnli", "--compare", "Q4_K_M", "Q8_0")
    assert done.code == 0
    assert "A is weblab-10b-Q4_K_M, B is weblab-10b-Q8_0" in done.stdout
    task, n, first, second, difference, _interval, *split, p = rows(done.stdout)[-1]
    assert (task, n, first, difference, split, p) == ("jnli", "3", second, "+0.00", ["0", "0"], "1.000")


def test_a_model_is_compared_with_its_reference(weblab: CommandLine, small_data: Path, demo_checkpoint: Path) -> None:
    options = ("--data", small_data, "--tasks", "jnli,jsquad", "--reference", demo_checkpoint)
    done = weblab("eval", *DEMO, *options)
    assert done.code == 0
    assert "generates nothing: jsquad" in done.stderr
    assert f"A is {demo_checkpoint.name} fp16, B is {demo_model().stem}" in done.stdout
    assert rows(done.stdout)[-1][:2] == ["jnli", "3"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--tasks", "jnli,squad"), 1, "no task called squad"),
        ((*DEMO, "--tasks", "marc_ja"), 1, "has no data for marc_ja"),
        (("--suite", "jglue-5"), 2, "jglue-5"),
        (("--compare", "demo", "demo", "--reference", "x"), 2, "--compare"),
        (("--compare", "demo", "nothing"), 1, "nothing"),
        (("--limit", "0"), 2, "limit"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    weblab: CommandLine, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    data = write_data(tmp_path, ["jnli"])
    done = weblab("eval", "--data", data, *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr


def test_packages_that_are_not_there_are_named(weblab: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None if name == "neologdn" else object())
    done = weblab("eval", *DEMO)
    assert done.code == 1
    assert "not installed: neologdn" in done.stderr
    assert "weblab-local[eval]" in done.stderr
