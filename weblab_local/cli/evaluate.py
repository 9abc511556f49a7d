"""`weblab-local eval`: the card's benchmark, as tables on stdout; progress and all else on stderr."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weblab_local.cli.options import Model, RuntimeOptions
from weblab_local.cli.signatures import command
from weblab_local.errors import EvaluationError, ModelNotFoundError
from weblab_local.i18n import _, n_

if TYPE_CHECKING:
    from weblab_local.evaluation.harness import Results
    from weblab_local.evaluation.prompts import Question
    from weblab_local.evaluation.tasks import Task

PLAIN_STEPS = 20
"""Lines of progress where stderr is no terminal."""


@dataclass(frozen=True)
class Evaluation:
    """What is asked and of whom, and where the answers go."""

    suite: Annotated[
        Literal["jglue-4", "jglue-8"], typer.Option(help="The four tasks of the model card's table, or all eight.")
    ] = "jglue-4"
    tasks: Annotated[
        str,
        typer.Option(
            metavar=n_("LIST"),
            help="Tasks to run instead of a suite, like jcommonsenseqa,jnli.",
            show_default="all of the suite",
        ),
    ] = ""
    data: Annotated[
        Path | None,
        typer.Option(
            metavar=n_("FOLDER"),
            help="Folder with the files that JGLUE publishes.",
            show_default="downloaded from the Hugging Face Hub",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask of each task.", show_default="all")] = None
    reference: Annotated[
        str | None,
        typer.Option(
            metavar=n_("SOURCE"),
            help="Compare with this checkpoint in fp16: a folder or a repository on the Hub. It is run one layer at a "
            "time, so that it needs little memory.",
        ),
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the reference on the Hub.")] = None
    parallel: Annotated[
        int, typer.Option(min=1, help="Questions to answer at the same time; each needs memory for its context.")
    ] = 1
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask questions again that have a kept answer.")] = False
    log: Annotated[
        Path | None,
        typer.Option(metavar=n_("FILE"), help="Write each question's prompt and answers to this file, as JSON lines."),
    ] = None
    output: Annotated[
        Path | None, typer.Option(metavar=n_("FOLDER"), help="Write lm-eval's results to this folder, as JSON.")
    ] = None

    def chosen_tasks(self) -> "list[Task]":
        """The tasks that are named, else those of the suite. EvaluationError for a name that is none."""
        from weblab_local.evaluation.tasks import SUITES, TASKS

        wanted = [name.strip() for name in self.tasks.split(",") if name.strip()] or list(SUITES[self.suite])
        if unknown := [name for name in wanted if name not in TASKS]:
            raise EvaluationError(
                _("There is no task called {names}.").format(names=", ".join(unknown)),
                _("Choose from {names}.").format(names=", ".join(TASKS)),
            )
        return [TASKS[name] for name in dict.fromkeys(wanted)]


@command
def evaluate(
    *,
    model: Model = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare two models on the same questions. The end of a stored model's name is enough: Q4_K_M Q8_0.",
        ),
    ] = None,
    evaluation: Evaluation,
    runtime: RuntimeOptions,
) -> None:
    """Run the model card's benchmark and show the results beside the card's.

    Answers are kept: the same command continues an interrupted run, and a later comparison uses them again.
    """
    if compare is not None and (model is not None or evaluation.reference is not None):
        raise typer.BadParameter(_("--compare takes the place of --model and --reference."))
    run(compare or [model], evaluation, runtime)


def run(models: Sequence[str | None], evaluation: Evaluation, runtime: RuntimeOptions) -> None:
    """Evaluate one model, or two to compare, or one and its reference, and print. Raises WeblabError."""
    tasks = evaluation.chosen_tasks()
    _require_lm_eval()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from weblab_local.evaluation.data import load_questions

    if evaluation.reference is not None:
        from weblab_local.evaluation.reference import require_convert

        require_convert()
    paths = [_find(model) for model in models]
    alike = len({path.stem for path in paths}) < len(paths)
    questions = load_questions(tasks, evaluation.data)
    results: dict[str, Results] = {}
    try:
        for path in paths:
            results |= _evaluate(path, str(path) if alike else path.stem, tasks, evaluation, runtime, questions)
    except KeyboardInterrupt:
        _say(_("Interrupted. What was answered is kept: the same command goes on there."))
        raise
    _write(results, evaluation)
    _print(results, tasks)


def _require_lm_eval() -> None:
    if missing := [name for name in ("lm_eval", "datasets", "fugashi", "neologdn", "emoji") if find_spec(name) is None]:
        raise EvaluationError(
            _("The evaluation needs packages that are not installed: {names}.").format(names=", ".join(missing)),
            _("Install them: `make eval`, or pip install 'weblab-local[eval]'."),
        )


def _find(name: str | None) -> Path:
    """Return the path of a model: named as for --model, or by an end that only one name in the store has (Q4_K_M)."""
    from weblab_local.models.store import find_model, stored_models

    try:
        return find_model(name)
    except ModelNotFoundError:
        found = [model.path for model in stored_models() if name and model.name.endswith(f"-{name}")]
        if len(found) != 1:
            raise
        return found[0]


def _evaluate(
    path: Path,
    name: str,
    tasks: "Sequence[Task]",
    evaluation: Evaluation,
    runtime: RuntimeOptions,
    questions: dict[str, list["Question"]],
) -> dict[str, "Results"]:
    """The results of the model called `name` and, where it is asked for, of its reference, by name."""
    from weblab_local.cli.session import open_model
    from weblab_local.engine.engine import DEFAULT_N_CTX
    from weblab_local.evaluation.harness import run_tasks
    from weblab_local.evaluation.lm_eval_model import EngineLM
    from weblab_local.evaluation.result_cache import CachedLM, ResultCache, cache_of

    def ask(lm: EngineLM, cache: ResultCache, tasks: "Sequence[Task]", name: str) -> "Results":
        if evaluation.fresh:
            cache.forget()
        with cache, _shown(name) as progress:
            return run_tasks(CachedLM(lm, cache, progress), tasks, questions, lm, limit=evaluation.limit)

    n_ctx = DEFAULT_N_CTX * evaluation.parallel
    with open_model(str(path), runtime, n_ctx=n_ctx, n_parallel=evaluation.parallel, workload="prompt") as engine:
        results = {name: ask(EngineLM(engine, separate=True), cache_of(engine), tasks, name)}
        if evaluation.reference is not None:
            from weblab_local.evaluation.reference import (
                ReferenceLM,
                cache_of_reference,
                reference_name,
                split_scorable,
            )

            scorable, generated = split_scorable(tasks)
            if generated:
                _say(
                    _("Left out of the comparison with the reference, which generates nothing: {names}.").format(
                        names=", ".join(task.name for task in generated)
                    )
                )
            if scorable:
                cache = cache_of_reference(evaluation.reference, evaluation.revision, engine)
                lm = ReferenceLM(engine, evaluation.reference, evaluation.revision, cache.path)
                fp16 = reference_name(evaluation.reference)
                results = {fp16: ask(lm, cache, scorable, fp16)} | results
    return results


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


def _print(results: dict[str, "Results"], tasks: "Sequence[Task]") -> None:
    from rich.console import Console

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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
