"""Answers on disk: an evaluation that was interrupted asks only what it had not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from tests.support.privacy import FILE, FOLDER, everything_open, mode
from weblab_local.engine.engine import Engine
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.harness import run_tasks
from weblab_local.evaluation.lm_eval_model import EngineLM
from weblab_local.evaluation.result_cache import CachedLM, ResultCache, cache_of
from weblab_local.evaluation.tasks import TASKS

TEXTS = [(f"日本の{n}番目の", "山") for n in range(6)]


class Asked(EngineLM):
    """A model that counts what it is asked, and breaks off after so many answers."""

    def __init__(self, engine: Engine, breaks_after: int | None = None) -> None:
        super().__init__(engine, separate=True)
        self.asked: list[Any] = []
        self._breaks_after = breaks_after

    def _each(self, ask: Any, questions: Sequence[Any]) -> Any:
        for question in questions:
            if len(self.asked) == self._breaks_after:
                raise KeyboardInterrupt
            self.asked.append(question)
            yield ask(question)


def requests() -> list[Instance]:
    return [Instance("loglikelihood", {}, text, idx) for idx, text in enumerate(TEXTS)]


def test_an_interrupted_run_goes_on_where_it_was(demo_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "answers.jsonl"
    whole = EngineLM(demo_engine, separate=True).loglikelihood(requests())
    with ResultCache(path) as answers, pytest.raises(KeyboardInterrupt):
        CachedLM(Asked(demo_engine, breaks_after=4), answers).loglikelihood(requests())
    rest = Asked(demo_engine)
    progress: list[tuple[str, int, int]] = []
    with ResultCache(path) as answers:
        found = CachedLM(rest, answers, lambda *of: progress.append(of)).loglikelihood(requests())
    assert len(rest.asked) == 2
    assert progress == [("loglikelihood", 5, 6), ("loglikelihood", 6, 6)]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in whole]
    assert [a for a, _ in found] == pytest.approx([a for a, _ in whole], abs=0.01)
    nothing = Asked(demo_engine)
    with ResultCache(path) as answers:
        assert CachedLM(nothing, answers).loglikelihood(requests()) == found
    assert nothing.asked == []


def test_nobody_else_can_read_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "answers.jsonl"
    with everything_open(), ResultCache(path) as answers:
        assert (mode(path), mode(path.parent)) == (FILE, FOLDER)
        answers.add_partial("loglikelihood", TEXTS[0], (-1.0, True))
    path.chmod(0o644)
    path.parent.chmod(0o755)
    with ResultCache(path) as answers:
        assert ("loglikelihood", TEXTS[0]) in answers
        assert (mode(path), mode(path.parent)) == (FILE, FOLDER)


def test_a_line_that_was_not_finished_is_asked_again(demo_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with ResultCache(path) as answers:
        CachedLM(Asked(demo_engine), answers).loglikelihood(requests())
    path.write_bytes(path.read_bytes()[:-9])
    for n_left in (1, 0):
        lm = Asked(demo_engine)
        with ResultCache(path) as answers:
            CachedLM(lm, answers).loglikelihood(requests())
        assert len(lm.asked) == n_left
    assert len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]) == len(TEXTS)


def test_all_kinds_of_requests_are_kept(demo_engine: Engine, small_data: Path, tmp_path: Path) -> None:
    tasks = list(TASKS.values())
    questions = load_questions(tasks, small_data)
    found = []
    for _ in range(2):
        lm = Asked(demo_engine)
        with ResultCache(tmp_path / "answers.jsonl") as answers:
            found.append(run_tasks(CachedLM(lm, answers), tasks, questions, lm))
    assert lm.asked == []
    assert found[0]["results"] == found[1]["results"]
    rolling = [Instance("loglikelihood_rolling", {}, ("富士山は高い。",), 0)]
    for n_asked in (1, 0):
        lm = Asked(demo_engine)
        with ResultCache(tmp_path / "answers.jsonl") as answers:
            CachedLM(lm, answers).loglikelihood_rolling(rolling)
        assert len(lm.asked) == n_asked


def test_every_model_and_setting_has_answers_of_its_own(demo_f16: Path, demo_engine: Engine) -> None:
    with Engine(demo_f16, n_ctx=512, n_threads=1) as short, Engine(demo_f16, kv_type="q8_0", n_threads=1) as small:
        paths = []
        for engine in (demo_engine, short, small):
            with cache_of(engine) as answers:
                paths.append(answers.path)
    assert len(set(paths)) == 3
    with cache_of(demo_engine) as answers:
        assert answers.path == paths[0]


def test_answers_can_be_forgotten(tmp_path: Path) -> None:
    with ResultCache(tmp_path / "answers.jsonl") as answers:
        answers.add_partial("loglikelihood", ("a", "b"), (-1.0, True))
        answers.forget()
        assert ("loglikelihood", ("a", "b")) not in answers
        answers.add_partial("loglikelihood", ("a", "c"), (-2.0, False))
    with ResultCache(tmp_path / "answers.jsonl") as answers:
        assert ("loglikelihood", ("a", "b")) not in answers
        assert answers["loglikelihood", ("a", "c")] == [-2.0, False]
