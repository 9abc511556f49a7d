"""`weblab-local chat`: a question, an answer, and so on."""

import sys

from prompt_toolkit import PromptSession

from weblab_local.answer import Answerer
from weblab_local.model_store import find_model
from weblab_local.prompt import instruction_prompt


def run(model: str | None, temperature: float, max_tokens: int, seed: int | None) -> None:
    """Read instructions until Ctrl-D; Ctrl-C stops an answer."""
    path = find_model(model)
    answerer = Answerer(path)
    print(f"{path.stem} — {answerer.licence or 'licence unknown'}. Ctrl-D leaves.", file=sys.stderr)
    session: PromptSession[str] = PromptSession("> ")
    while True:
        try:
            instruction = session.prompt()
        except (EOFError, KeyboardInterrupt):
            return
        if not instruction.strip():
            continue
        try:
            for text in answerer.stream(instruction_prompt(instruction), temperature, max_tokens, seed):
                print(text, end="", flush=True)
        except KeyboardInterrupt:
            pass
        print()
