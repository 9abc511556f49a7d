"""`weblab-local eval`: the card's benchmark, as tables on stdout; progress and all else on stderr."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weblab_local.cli.session import open_model
from weblab_local.engine import DEFAULT_N_CTX, Engine
from weblab_local.errors import EvaluationError, ModelNotFoundError
from weblab_local.evaluation.tasks import SUITES, TASKS, Suite, Task
from weblab_local.i18n import _
from weblab_local.kv_types import KvType
from weblab_local.model_store import find_model, stored_models

if TYPE_CHECKING:
    from weblab_local.evaluation.harness import Results
    from weblab_local.evaluation.prompts import Question

PLAIN_STEPS = 20
"""Lines of progress where stderr is no terminal."""


@dataclass(frozen=True)
class Runtime:
    """How models are run."""

    parallel: int = 1
    n_gpu_layers: str = "auto"
    threads: int | None = None
    kv_type: KvType | None = None
    rpc: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What is asked: `limit` questions of each task, all for None. `reference` is a checkpoint, and its revision.

    Files: `log` gets each question with prompt and answers, `output` lm-eval's JSON for each model.
    """

    tasks: Sequence[Task]
    data: Path | None = None
    limit: int | None = None
    reference: str | None = None
    revision: str | None = None
    fresh: bool = False
    log: Path | None = None
    output: Path | None = None


def chosen_tasks(suite: Suite, names: str) -> list[Task]:
    """The tasks of `names`, a list between commas, or of the suite. EvaluationError for a name that is none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(SUITES[suite])
    if unknown := [name for name in wanted if name not in TASKS]:
        raise EvaluationError(
            _("There is no task called {names}.").format(names=", ".join(unknown)),
            _("Choose from {names}.").format(names=", ".join(TASKS)),
        )
    return [TASKS[name] for name in dict.fromkeys(wanted)]


def run(models: Sequence[str | None], evaluation: Evaluation, runtime: Runtime) -> None:
    """Evaluate one model, or two to compare, or one and its reference, and print. Raises WeblabError."""
    _require_lm_eval()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from weblab_local.evaluation.data import load_questions

    if evaluation.reference is not None:
        from weblab_local.evaluation.reference import require_convert

        require_convert()
    paths = [_find(model) for model in models]
    alike = len({path.stem for path in paths}) < len(paths)
    questions = load_questions(evaluation.tasks, evaluation.data)
    results: dict[str, Results] = {}
    try:
        for path in paths:
            results |= _evaluate(path, str(path) if alike else path.stem, evaluation, runtime, questions)
    except KeyboardInterrupt:
        _say(_("Interrupted. What was answered is kept: the same command goes on there."))
        raise
    _write(results, evaluation)
    _print(results, evaluation.tasks)


def _require_lm_eval() -> None:
    if missing := [name for name in ("lm_eval", "datasets", "fugashi", "neologdn", "emoji") if find_spec(name) is None]:
        raise EvaluationError(
            _("The evaluation needs packages that are not installed: {names}.").format(names=", ".join(missing)),
            _("Install them: `make eval`, or pip install 'weblab-local[eval]'."),
        )


def _find(name: str | None) -> Path:
    """A model as everywhere, or the only one in the store whose name ends so: Q4_K_M."""
    try:
        return find_model(name)
    except ModelNotFoundError:
        found = [model.path for model in stored_models() if name and model.name.endswith(f"-{name}")]
        if len(found) != 1:
            raise
        return found[0]


def _evaluate(
    path: Path, name: str, evaluation: Evaluation, runtime: Runtime, questions: dict[str, list["Question"]]
) -> dict[str, "Results"]:
    """The results of the model called `name` and, where it is asked for, of its reference, by name."""
    from weblab_local.evaluation.answers import Answers, ResumedLM, answers_of
    from weblab_local.evaluation.harness import run_tasks
    from weblab_local.evaluation.lm_eval_model import EngineLM

    def ask(lm: EngineLM, answers: Answers, tasks: Sequence[Task], name: str) -> "Results":
        if evaluation.fresh:
            answers.forget()
        with answers, _shown(name) as progress:
            return run_tasks(ResumedLM(lm, answers, progress), tasks, questions, lm, limit=evaluation.limit)

    with _opened(path, runtime) as engine:
        results = {name: ask(EngineLM(engine, separate=True), answers_of(engine), evaluation.tasks, name)}
        if evaluation.reference is not None:
            from weblab_local.evaluation.reference import (
                ReferenceLM,
                answers_of_reference,
                reference_name,
                split_scorable,
            )

            scorable, generated = split_scorable(evaluation.tasks)
            if generated:
                _say(
                    _("Left out of the comparison with the reference, which generates nothing: {names}.").format(
                        names=", ".join(task.name for task in generated)
                    )
                )
            if scorable:
                answers = answers_of_reference(evaluation.reference, evaluation.revision, engine)
                lm = ReferenceLM(engine, evaluation.reference, evaluation.revision, answers.path)
                fp16 = reference_name(evaluation.reference)
                results = {fp16: ask(lm, answers, scorable, fp16)} | results
    return results


def _opened(path: Path, runtime: Runtime) -> Engine:
    return open_model(
        str(path),
        n_ctx=DEFAULT_N_CTX * runtime.parallel,
        n_parallel=runtime.parallel,
        n_gpu_layers=runtime.n_gpu_layers,
        threads=runtime.threads,
        kv_type=runtime.kv_type,
        rpc=runtime.rpc,
    )


def _write(results: dict[str, "Results"], evaluation: Evaluation) -> None:
    from lm_eval.utils import handle_non_serializable

    if evaluation.log is not None:
        with evaluation.log.open("w", encoding="utf-8") as file:
            for name, of_model in results.items():
                for task, samples in of_model["samples"].items():
                    for sample in samples:
                        file.write(json.dumps(_logged(name, task, sample), ensure_ascii=False) + "\n")
    if evaluation.output is not None:
        evaluation.output.mkdir(parents=True, exist_ok=True)
        for name, of_model in results.items():
            content = {key: value for key, value in of_model.items() if key != "samples"}
            text = json.dumps(content, ensure_ascii=False, indent=2, default=handle_non_serializable)
            (evaluation.output / f"{Path(name).name}.json").write_text(text + "\n", encoding="utf-8")


def _logged(model: str, task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """A question of the log: its prompt, and what was answered."""
    prompts, given = zip(*sample["arguments"], strict=True)
    answers = sample["filtered_resps"]
    if isinstance(answers[0], str):
        answered: dict[str, Any] = {"answer": answers[0]}
    else:
        loglikelihoods, is_greedy = zip(*answers, strict=True)
        answered = {"choices": given, "loglikelihoods": loglikelihoods, "is_greedy": is_greedy}
    return {
        "model": model,
        "task": task,
        "doc_id": sample["doc_id"],
        "prompt": prompts[0],
        **answered,
        "target": sample["target"],
        **{metric: sample[metric] for metric in sample["metrics"]},
    }


def _print(results: dict[str, "Results"], tasks: Sequence[Task]) -> None:
    from weblab_local.evaluation.harness import scores
    from weblab_local.evaluation.report import comparison_table, score_table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    by_model = {
        name: {task.name: scores(of_model, task) for task in tasks if task.name in of_model["samples"]}
        for name, of_model in results.items()
    }
    for name, of_model_scores in by_model.items():
        console.print(score_table(name, of_model_scores))
        console.print()
    console.print(_("Percent, with 95-percent intervals. The last columns are the model card's figures, for fp16."))
    if len(by_model) == 2:
        first, second = by_model
        console.print()
        console.print(_("A is {first}, B is {second}, on the same questions:").format(first=first, second=second))
        console.print(comparison_table(by_model[first], by_model[second]))


@contextmanager
def _shown(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback for progress: a bar at a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield lambda kind, done, total: _plain(name, kind, done, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bars: dict[str, Any] = {}

        def update(kind: str, done: int, total: int) -> None:
            if kind not in bars:
                bars[kind] = bar.add_task(f"{name}: {_kind(kind)}", total=total)
            bar.update(bars[kind], completed=done)

        yield update


def _plain(name: str, kind: str, done: int, total: int) -> None:
    if done == total or done * PLAIN_STEPS // total > (done - 1) * PLAIN_STEPS // total:
        _say(f"{name}: {_kind(kind)}, {done}/{total}")


def _kind(kind: str) -> str:
    return _("choices compared") if kind == "loglikelihood" else _("answers generated")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
