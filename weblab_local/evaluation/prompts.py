r"""Prompts of template version 0.3: which examples a question gets, how all is joined, how it is made to fit.

{description}{example}\n\n{example}\n\n{question, up to where its answer begins}
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weblab_local.engine.prompt import INPUT, INSTRUCTION, PREAMBLE_WITH_INPUT, RESPONSE
from weblab_local.evaluation.tasks import CountTokens, Doc, Task

SEED = 42
SEPARATOR = "\n\n"
DESCRIPTION = PREAMBLE_WITH_INPUT + SEPARATOR
INSTRUCTION_MARK = INSTRUCTION.lstrip("\n")
INPUT_MARK = INPUT.lstrip("\n")
ANSWER_MARK = RESPONSE.lstrip("\n") + "\n"


@dataclass(frozen=True)
class Question:
    """One of a task's questions, and the examples that were drawn for it."""

    doc: Doc
    examples: Sequence[Doc]


def draw_questions(task: Task, training: Sequence[Doc], asked: Sequence[Doc]) -> list[Question]:
    """All of `asked` in the order of the benchmark, with their examples: both are one generator's, seeded with 42."""
    rng = random.Random(SEED)
    shuffled = list(asked)
    rng.shuffle(shuffled)
    return [Question(doc, rng.sample(training, task.shots) if task.shots else ()) for doc in shuffled]


@dataclass(frozen=True)
class Prompt:
    """A prompt in its parts. Each of `examples` and `asked` is (up to where the answer begins, answer)."""

    examples: Sequence[tuple[str, str]]
    asked: str

    @property
    def text(self) -> str:
        """The whole of it."""
        shown = [before + answer for before, answer in self.examples]
        return DESCRIPTION + SEPARATOR.join([*shown, self.asked])


def prompt_of(task: Task, question: Question) -> Prompt:
    """The prompt of a task that has a template."""
    example_input = task.example_input or task.input
    return Prompt(
        [(_asked(task, doc, example_input(doc)), task.answer(doc)) for doc in question.examples],
        _asked(task, question.doc, task.input(question.doc)),
    )


def prompt_text(task: Task, question: Question, count: CountTokens, room: int) -> str:
    """What stands before the answer, shortened the task's way where it has more than `room` tokens.

    It may still have more: whoever computes it then cuts it off at the left.
    """
    if not task.templated:
        return ""
    prompt = prompt_of(task, question)
    if task.shortened == "examples":
        while prompt.examples and count(prompt.text) > room:
            prompt = replace(prompt, examples=prompt.examples[1:])
    elif task.shortened == "articles" and count(prompt.text) > room:
        prompt = _with_shorter_articles(prompt, count, room // (len(prompt.examples) + 1))
    return prompt.text


def _asked(task: Task, doc: Doc, input_text: str) -> str:
    return f"{INSTRUCTION_MARK}{task.instruction(doc)}{task.gap}{INPUT_MARK}{input_text}\n\n{ANSWER_MARK}"


def _with_shorter_articles(prompt: Prompt, count: CountTokens, share: int) -> Prompt:
    return Prompt(
        [(_shorter(before, count, share), answer) for before, answer in prompt.examples],
        _shorter(prompt.asked, count, share),
    )


def _shorter(asked: str, count: CountTokens, share: int) -> str:
    """As many sentences of the article, at least one, as have at most `share` tokens with what stands before them.

    A shortened article is followed by one line break only, as in the fork.
    """
    heading, mark, article = asked.removesuffix(ANSWER_MARK).partition(INPUT_MARK)
    sentences = article.split("。")
    fitting = len(sentences)
    while fitting > 1 and count(heading + mark + "。".join(sentences[:fitting])) > share:
        fitting -= 1
    if fitting == len(sentences):
        return asked
    return heading + mark + "。".join(sentences[:fitting]) + "。\n" + ANSWER_MARK
