"""`weblab-local generate`: one answer on stdout."""

import json
import sys
from dataclasses import asdict

from weblab_local.cli.session import INTERRUPTED, cancelled_by_ctrl_c, reading_progress
from weblab_local.engine import Engine
from weblab_local.errors import PromptError
from weblab_local.generation import Chunk, Completion, complete
from weblab_local.i18n import _
from weblab_local.sampling import SamplingParams


def run(
    engine: Engine, instruction: str, params: SamplingParams, context: str | None, *, raw: bool, as_json: bool
) -> int:
    """Print the answer as it comes, or as one JSON object at its end. Returns the exit code."""
    if not instruction.strip():
        raise PromptError(_("The instruction is empty."), _("Give it as an argument or on stdin."))
    chunks: list[Chunk] = []
    generation = engine.stream(instruction, params, context=context, raw=raw, on_progress=reading_progress)
    with cancelled_by_ctrl_c(generation.cancel):
        for chunk in generation:
            chunks.append(chunk)
            if not as_json:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    completion = complete(chunks)
    _end(completion, as_json)
    return INTERRUPTED if completion.finish_reason == "cancelled" else 0


def _end(completion: Completion, as_json: bool) -> None:
    if as_json:
        result = asdict(completion)
        result["stats"] |= {
            "prompt_speed": completion.stats.prompt_speed,
            "generation_speed": completion.stats.generation_speed,
        }
        print(json.dumps(result, ensure_ascii=False))
    else:
        print()
