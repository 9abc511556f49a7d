"""The tasks as lm-eval's own `Task`s, and a run of them by lm-eval's evaluator."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.api.task import Task as LmEvalTask
from lm_eval.evaluator import evaluate

from weblab_local.evaluation.lm_eval_model import EngineLM
from weblab_local.evaluation.metrics import judge
from weblab_local.evaluation.prompts import DESCRIPTION, SEED, Question, prompt_text
from weblab_local.evaluation.tasks import Doc, Task

Results = dict[str, Any]
"""lm-eval's results, with its names: "results", "samples", "versions", "n-shot", "config" and so on."""

STOP = "\n"


class BenchmarkTask(LmEvalTask):  # type: ignore[misc]
    """One of the tasks with its questions. `lm` tokenizes, for the lengths that depend on that."""

    def __init__(self, task: Task, questions: Sequence[Question], lm: EngineLM) -> None:
        super().__init__()
        self.VERSION = task.version
        self.OUTPUT_TYPE = "multiple_choice" if task.choices else "generate_until"
        self._task = task
        self._questions = questions
        self._room = lm.max_length
        self._count: Callable[[str], int] = lambda text: len(lm.tok_encode(text))
        for key, value in {
            "task": task.name,
            "num_fewshot": task.shots,
            "description": DESCRIPTION if task.templated else "",
            "output_type": self.OUTPUT_TYPE,
            "dataset_path": task.hub[0],
            "dataset_name": task.hub[1],
            "generation_kwargs": None if task.choices else {"until": [STOP], "do_sample": False},
            "repeats": 1,
        }.items():
            self.set_config(key, value)

    def download(self, *_: Any, **__: Any) -> None:
        """The questions are there already."""

    def has_training_docs(self) -> bool:
        """Examples are drawn already."""
        return False

    def has_validation_docs(self) -> bool:
        """What is asked."""
        return True

    def has_test_docs(self) -> bool:
        """What is asked is called validation here, whatever the data set calls it."""
        return False

    def validation_docs(self) -> list[Doc]:
        """All questions, in the benchmark's order."""
        return [question.doc for question in self._questions]

    def build_all_requests(self, *, limit: int | None = None, **_: Any) -> None:
        """The requests of the first `limit` questions."""
        self._instances = []
        for number, question in enumerate(self._questions[:limit]):
            room = self._room - (self._task.max_tokens(question.doc, self._count) if self._task.max_tokens else 0)
            prompt = prompt_text(self._task, question, self._count, room)
            self._instances += self.construct_requests(question.doc, prompt, metadata=(self._task.name, number, 1))

    def doc_to_text(self, doc: Doc) -> str:
        """The question's own text, as an example has it."""
        return self._task.input(doc)

    def doc_to_target(self, doc: Doc) -> str:
        """The right answer."""
        if self._task.choices is not None and self._task.label is not None:
            return self._task.choices(doc)[self._task.label(doc)]
        return self._task.golds(doc)[0] if self._task.golds is not None else ""

    def construct_requests(self, doc: Doc, ctx: str, *, metadata: Any = None, **_: Any) -> list[Instance]:
        """A request for each choice, or one to generate."""
        if self._task.choices is not None:
            return [
                Instance("loglikelihood", doc, (ctx, choice), idx, metadata)
                for idx, choice in enumerate(self._task.choices(doc))
            ]
        n_tokens = self._task.max_tokens(doc, self._count) if self._task.max_tokens else 0
        options = {"until": [STOP], "max_gen_toks": n_tokens, "do_sample": False}
        return [Instance("generate_until", doc, (ctx, options), 0, metadata)]

    def process_results(self, doc: Doc, results: Sequence[Any]) -> Mapping[str, float]:
        """The metrics of one question."""
        if self._task.label is None:
            return judge(self._task, doc, results[0])
        loglikelihoods = [loglikelihood for loglikelihood, _ in results]
        return {"acc": float(loglikelihoods.index(max(loglikelihoods)) == self._task.label(doc))}

    def aggregation(self) -> dict[str, Callable[[Sequence[float]], float]]:
        """All are means over questions."""
        return dict.fromkeys(self._metrics(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        """All are."""
        return dict.fromkeys(self._metrics(), True)

    def _metrics(self) -> tuple[str, ...]:
        return ("exact_match", "f1") if self._task.metric == "exact_match" else (self._task.metric,)


def run_tasks(
    lm: LM,
    tasks: Sequence[Task],
    questions: Mapping[str, Sequence[Question]],
    tokenizing: EngineLM,
    *,
    limit: int | None = None,
) -> Results:
    """Ask `lm` the first `limit` questions of each of the `tasks`; lm-eval's results, samples included."""
    started = time.time()
    wrapped = {task.name: BenchmarkTask(task, questions[task.name], tokenizing) for task in tasks}
    results: Results = evaluate(lm, {"tasks": wrapped}, limit=limit, log_samples=True)
    results["config"] = {
        "model": "weblab-local",
        "model_args": {"model": tokenizing.tokenizer_name},
        "limit": limit,
        "fewshot_seed": SEED,
    }
    results["date"] = started
    results["lm_eval_version"] = version("lm-eval")
    results["weblab_local_version"] = version("weblab-local")
    results["total_evaluation_time_seconds"] = str(time.time() - started)
    return results


def scores(results: Results, task: Task) -> list[float]:
    """The card's metric of each question of a task, in the benchmark's order."""
    samples = sorted(results["samples"][task.name], key=lambda sample: sample["doc_id"])
    return [float(sample[task.metric]) for sample in samples]
