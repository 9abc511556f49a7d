"""Time of the card's benchmark on a model: seconds per question of each task, and what all questions then take.

    python -m tests.benchmarks.evaluate MODEL --data DIR [--questions 3] [--tasks jcommonsenseqa,jnli,jsquad]
        [--parallel 1] [--beside-chat] [--cpu-time]

DIR has JGLUE's published files. The first questions of each task are asked, after one that is not counted. With
`--beside-chat` each of them is also asked of the model as it is loaded for a chat, and the last column is the median of
that time over the other. With `--cpu-time` one thread computes and its processor time is counted, which other programs
hardly change.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from weblab_local import load
from weblab_local.engine.engine import DEFAULT_N_CTX
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.harness import run_tasks
from weblab_local.evaluation.lm_eval_model import EngineLM
from weblab_local.evaluation.prompts import Question
from weblab_local.evaluation.tasks import TASKS, Task
from weblab_local.machine.tuning import WorkloadName

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


@dataclass(frozen=True)
class Measured:
    """Of a task: seconds per question of each group of them, by engine, and the mean of the prompts' tokens."""

    seconds: Sequence[Sequence[float]]
    n_tokens: float


def measure(lms: Sequence[EngineLM], task: Task, questions: Sequence[Question], clock: Callable[[], float]) -> Measured:
    """Ask each question of all, as many at a time as they have sequences; the first of these groups is not counted."""
    together = lms[0].engine.n_parallel
    seconds, lengths = [], []
    for start in range(0, len(questions), together):
        group, took = questions[start : start + together], []
        for lm in lms:
            started = clock()
            results = run_tasks(lm, [task], {task.name: group}, lm)
            took.append((clock() - started) / len(group))
        prompts = [sample["arguments"][0][0] for sample in results["samples"][task.name]]
        seconds.append(took)
        lengths.append(statistics.mean(len(lms[0].tok_encode(prompt)) for prompt in prompts))
    return Measured(seconds[1:], statistics.mean(lengths[1:]))


def main() -> None:
    """Run the command line; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as weblab-local's --model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=3, help="of each task; default: %(default)s")
    parser.add_argument("--tasks", default="jcommonsenseqa,jnli,jsquad", help="default: %(default)s")
    parser.add_argument("--parallel", type=int, default=1, help="questions at a time; default: %(default)s")
    parser.add_argument("--beside-chat", action="store_true", help="by turns with the model loaded as for a chat")
    parser.add_argument("--cpu-time", action="store_true", help="count one thread's processor time")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = [TASKS[name] for name in arguments.tasks.split(",")]
    questions = load_questions(tasks, arguments.data)
    workloads: list[WorkloadName] = ["prompt", "chat"] if arguments.beside_chat else ["prompt"]
    print("| task | tokens of prompt | seconds per question | questions | hours for all |", end="")
    print(" as for a chat | ratio |" if arguments.beside_chat else "")
    print("| --- " * (7 if arguments.beside_chat else 5) + "|")
    with ExitStack() as stack:
        lms = []
        for workload in workloads:
            engine = load(
                arguments.model,
                n_ctx=DEFAULT_N_CTX * arguments.parallel,
                n_parallel=arguments.parallel,
                n_threads=1 if arguments.cpu_time else None,
                workload=workload,
            )
            lms.append(EngineLM(stack.enter_context(engine), separate=True))
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        for task in tasks:
            found = measure(lms, task, questions[task.name][: arguments.questions + arguments.parallel], clock)
            seconds = [statistics.mean(each) for each in zip(*found.seconds, strict=True)]
            published = PUBLISHED[task.name]
            cells = [task.name, f"{found.n_tokens:.0f}", f"{seconds[0]:.2f}", f"{published}"]
            cells.append(f"{seconds[0] * published / 3600:.2f}")
            if arguments.beside_chat:
                ratio = statistics.median(chat / prompt for prompt, chat in found.seconds)
                cells += [f"{seconds[1]:.2f}", f"{ratio:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
