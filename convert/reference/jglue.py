"""JGLUE's JSQuAD and JCommonsenseQA as texts to verify on, in the wording of the model card's benchmark."""

import os
from pathlib import Path

from convert.reference.texts import Text
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.tasks import JCOMMONSENSEQA, JSQUAD

MAX_QUESTIONS = 200
"""Of each: more than are ever compared on, and soon tokenized."""

_TASKS = {"JSQuAD": JSQUAD, "JCommonsenseQA": JCOMMONSENSEQA}


def held_out_texts() -> list[Text]:
    """The validation sets in `jglue/` of the folder that WEBLAB_TEST_DATA names, as far as they are there.

    Each question is followed by its answer; they stand in the benchmark's order, which is drawn once and for all.
    Raises EvaluationError for files that are damaged or incomplete.
    """
    if "WEBLAB_TEST_DATA" not in os.environ:
        return []
    folder = Path(os.environ["WEBLAB_TEST_DATA"], "jglue")
    texts = []
    for origin, task in _TASKS.items():
        if any(folder.glob(f"{task.name}-v*")):
            for question in load_questions([task], folder)[task.name][:MAX_QUESTIONS]:
                prompt = instruction_prompt(task.instruction(question.doc), task.input(question.doc))
                texts.append(Text("ja", prompt + task.answer(question.doc), in_template=True, origin=origin))
    return texts
