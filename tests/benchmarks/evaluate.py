"""Time of the card's benchmark on a model: seconds per question of each task, and what all questions then take.

    python -m tests.benchmarks.evaluate MODEL --data DIR [--questions 3] [--tasks jcommonsenseqa,jnli,jsquad]
        [--parallel 1]

DIR has JGLUE's published files. The first questions of each task are asked, after one that is not counted.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from weblab_local import load
from weblab_local.engine.engine import DEFAULT_N_CTX
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.harness import run_tasks
from weblab_local.evaluation.lm_eval_model import EngineLM
from weblab_local.evaluation.prompts import Question
from weblab_local.evaluation.tasks import TASKS, Task

PUBLISHED = {
    "jcommonsenseqa": 1119,
    "jnli": 2434,
    "marc_ja": 5654,
    "jsquad": 4442,
    "jaqket_v2": 271,
    "xlsum_ja": 766,
    "xwinograd_ja": 959,
    "mgsm": 250,
}
"""Questions in the published data sets; a folder may hold fewer."""


def measure(lm: EngineLM, task: Task, questions: Sequence[Question]) -> tuple[float, float]:
    """Seconds per question, and tokens of a question's prompt."""
    run_tasks(lm, [task], {task.name: questions[:1]}, lm)
    started = time.perf_counter()
    results = run_tasks(lm, [task], {task.name: questions[1:]}, lm)
    seconds = time.perf_counter() - started
    prompts = [sample["arguments"][0][0] for sample in results["samples"][task.name]]
    return seconds / len(prompts), sum(len(lm.tok_encode(prompt)) for prompt in prompts) / len(prompts)


def main() -> None:
    """Run the command line; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as weblab-local's --model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=3, help="of each task; default: %(default)s")
    parser.add_argument("--tasks", default="jcommonsenseqa,jnli,jsquad", help="default: %(default)s")
    parser.add_argument("--parallel", type=int, default=1, help="questions at a time; default: %(default)s")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = [TASKS[name] for name in arguments.tasks.split(",")]
    questions = load_questions(tasks, arguments.data)
    print("| task | tokens of prompt | seconds per question | questions | hours for all |")
    print("| --- | --- | --- | --- | --- |")
    n_ctx = DEFAULT_N_CTX * arguments.parallel
    with load(arguments.model, n_ctx=n_ctx, n_parallel=arguments.parallel) as engine:
        lm = EngineLM(engine, separate=True)
        for task in tasks:
            seconds, n_tokens = measure(lm, task, questions[task.name][: arguments.questions + 1])
            hours = seconds * PUBLISHED[task.name] / 3600
            print(
                f"| {task.name} | {n_tokens:.0f} | {seconds:.2f} | {PUBLISHED[task.name]} | {hours:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
