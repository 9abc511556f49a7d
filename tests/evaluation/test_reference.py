"""The fp16 reference on the requests of an evaluation, beside transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM

from convert.errors import ConversionError
from convert.reference.score import PASS_TOKENS, read_requests, score
from convert.source.checkpoint import open_checkpoint
from tests.engine.test_scoring import expected
from tests.evaluation.harness import hf_model
from tests.support import reference
from tests.support.conversions import ROOT
from tests.support.engines import long_prompt
from weblab_local.engine.engine import Engine
from weblab_local.errors import EvaluationError
from weblab_local.evaluation import reference as of_evaluation
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.harness import run_tasks, scores
from weblab_local.evaluation.reference import ReferenceLM, cache_of_reference, require_convert, split_scorable
from weblab_local.evaluation.result_cache import CachedLM
from weblab_local.evaluation.tasks import TASKS

CHOICES = [task for task in TASKS.values() if task.choices]


@pytest.fixture(scope="module")
def hf(demo_checkpoint: Path) -> LM:
    return hf_model(demo_checkpoint, separate=True)


def test_scores_are_those_of_transformers(demo_checkpoint: Path) -> None:
    ids = reference.encode("日本で一番高い山は富士山です。")
    requests: list[dict[str, Any]] = [
        {"context": ids[:4], "continuations": [ids[4:], ids[5:7], [3]]},
        {"context": [0], "continuations": [ids]},
    ]
    for request, found in zip(requests, score(open_checkpoint(demo_checkpoint), requests), strict=True):
        for continuation, (loglikelihood, is_greedy) in zip(request["continuations"], found, strict=True):
            logprobs, greedy = expected(request["context"], continuation)
            assert loglikelihood == pytest.approx(sum(logprobs), abs=1e-3)
            assert is_greedy == greedy


def test_a_context_that_leaves_no_room_for_all_continuations_is_computed_with_each(demo_checkpoint: Path) -> None:
    context, continuations = long_prompt(2030), [long_prompt(15, seed=n) for n in (1, 2)]
    (found,) = score(open_checkpoint(demo_checkpoint), [{"context": context, "continuations": continuations}])
    for continuation, (loglikelihood, _greedy) in zip(continuations, found, strict=True):
        assert loglikelihood == pytest.approx(sum(expected(context, continuation)[0]), abs=1e-3)


def test_an_interrupted_pass_goes_on_with_the_same_continuations_alone(demo_checkpoint: Path, tmp_path: Path) -> None:
    """What is kept of one way to part the same tokens is not taken for another."""
    checkpoint, state = open_checkpoint(demo_checkpoint), tmp_path / "state"
    ids = reference.encode("日本で一番高い山は富士山です。")
    parted = [[{"context": ids[:cut], "continuations": [ids[cut:], [9]]}] for cut in (4, 6)]
    whole = [list(score(checkpoint, requests)) for requests in parted]

    def interrupt(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    for requests in parted:
        with pytest.raises(KeyboardInterrupt):
            list(score(checkpoint, requests, state=state, progress=interrupt))
    assert state.exists()
    for requests, expected_scores in reversed(list(zip(parted, whole, strict=True))):
        assert list(score(checkpoint, requests, state=state)) == expected_scores
        assert not state.exists()


def test_many_requests_take_several_passes_and_stay_in_order(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [{"context": [n + 5], "continuations": [[n + 6, n + 7], [9]]} for n in range(5)]
    checkpoint = open_checkpoint(demo_checkpoint)
    together = list(score(checkpoint, requests))
    monkeypatch.setattr("convert.reference.score.PASS_TOKENS", 12)
    assert PASS_TOKENS > 12
    for one, other in zip(score(checkpoint, requests), together, strict=True):
        assert [a for a, _ in one] == pytest.approx([a for a, _ in other], abs=1e-4)


@pytest.mark.parametrize("line", ["no JSON", '{"context": []}', '{"context": [], "continuations": [[1]]}', "[1]"])
def test_requests_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "requests").write_text(line + "\n")
    with pytest.raises(ConversionError, match="cannot be read as requests"):
        read_requests(tmp_path / "requests")


def test_the_reference_answers_as_transformers_does(
    demo_engine: Engine, demo_checkpoint: Path, hf: LM, small_data: Path
) -> None:
    """Scored by a process of its own; in float32 on the same weights, so the two agree closely."""
    questions = load_questions(CHOICES, small_data)
    with cache_of_reference(str(demo_checkpoint), None, demo_engine) as answers:
        lm = ReferenceLM(demo_engine, str(demo_checkpoint), None, answers.path)
        ours = run_tasks(CachedLM(lm, answers), CHOICES, questions, lm)
        again = run_tasks(CachedLM(LM_THAT_IS_NOT_ASKED, answers), CHOICES, questions, lm)
        assert list(answers.path.parent.iterdir()) == [answers.path]
    theirs = run_tasks(hf, CHOICES, questions, lm)
    assert again["results"] == ours["results"]
    for task in CHOICES:
        assert scores(ours, task) == scores(theirs, task)
        for mine, other in zip(ours["samples"][task.name], theirs["samples"][task.name], strict=True):
            logs = [[answer[0] for answer in of["filtered_resps"]] for of in (mine, other)]
            assert logs[0] == pytest.approx(logs[1], abs=2e-3)


class _NotAsked(LM):  # type: ignore[misc]
    def loglikelihood(self, requests: object) -> list[tuple[float, bool]]:
        raise AssertionError(requests)

    def loglikelihood_rolling(self, requests: object) -> list[float]:
        raise AssertionError(requests)

    def generate_until(self, requests: object) -> list[str]:
        raise AssertionError(requests)


LM_THAT_IS_NOT_ASKED = _NotAsked()


def test_tasks_with_generated_answers_are_left_out() -> None:
    scorable, generated = split_scorable(list(TASKS.values()))
    assert [task.name for task in scorable] == ["jcommonsenseqa", "jnli", "marc_ja", "xwinograd_ja"]
    assert [task.name for task in generated] == ["jsquad", "jaqket_v2", "xlsum_ja", "mgsm"]


def test_a_reference_that_fails_is_an_error(demo_engine: Engine, tmp_path: Path, small_data: Path) -> None:
    lm = ReferenceLM(demo_engine, str(tmp_path / "nowhere"), None, tmp_path / "answers.jsonl")
    with pytest.raises(EvaluationError, match="did not come to its end"):
        run_tasks(lm, CHOICES[:1], load_questions(CHOICES[:1], small_data), lm)


def test_without_the_converter_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_convert()
    monkeypatch.setattr(of_evaluation, "find_spec", lambda name: None if name == "convert" else object())
    with pytest.raises(EvaluationError, match="checkout"):
        require_convert()


def test_the_command_prints_a_line_of_json_for_each_request(demo_checkpoint: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text(
        '{"context": [5, 6], "continuations": [[7], [8, 9]]}\n{"context": [0], "continuations": [[1]]}\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "convert.score", str(requests), str(demo_checkpoint)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert [len(json.loads(line)) for line in done.stdout.splitlines()] == [2, 1]


def test_the_package_does_not_import_the_converter() -> None:
    """Nor torch: lm-eval's evaluator does without."""
    code = (
        "import sys, weblab_local.cli.evaluate, weblab_local.evaluation.reference, weblab_local.evaluation.harness;"
        "print(sorted({'convert', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
