"""`weblab-local generate`: one answer on stdout."""

import json
import sys
from dataclasses import asdict

from weblab_local.cli.session import INTERRUPTED, reading_progress
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
    try:
        for chunk in generation:
            chunks.append(chunk)
            if not as_json:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        generation.cancel()
        chunks.extend(generation)
        return _end(complete(chunks), as_json, INTERRUPTED)
    return _end(complete(chunks), as_json, 0)


def _end(completion: Completion, as_json: bool, code: int) -> int:
    if as_json:
        result = asdict(completion)
        result["stats"] |= {
            "prompt_speed": completion.stats.prompt_speed,
            "generation_speed": completion.stats.generation_speed,
        }
        print(json.dumps(result, ensure_ascii=False))
    else:
        print()
    return code
