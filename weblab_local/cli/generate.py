"""`weblab-local generate`: one answer on stdout."""

import sys

from weblab_local.answer import Answerer
from weblab_local.errors import PromptError
from weblab_local.model_store import find_model
from weblab_local.prompt import instruction_prompt


def run(
    instruction: str,
    model: str | None,
    context: str | None,
    temperature: float,
    max_tokens: int,
    seed: int | None,
) -> None:
    """Print the answer as it comes, and a newline at its end."""
    if not instruction.strip():
        raise PromptError("The instruction is empty.", "Give it as an argument or on stdin.")
    answerer = Answerer(find_model(model))
    for text in answerer.stream(instruction_prompt(instruction, context), temperature, max_tokens, seed):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
