"""`weblab-local generate`: one answer on stdout."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.options import Model, NCtx, RuntimeOptions, SamplingOptions, Special
from weblab_local.cli.signatures import command
from weblab_local.errors import PromptError
from weblab_local.i18n import _
from weblab_local.streams import json_text, read_all

if TYPE_CHECKING:
    from weblab_local.engine.engine import Engine
    from weblab_local.engine.generation import Chunk, Completion
    from weblab_local.engine.sampling import SamplingParams


@command
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The instruction.", show_default="read from stdin")] = None,
    *,
    model: Model = None,
    input_text: Annotated[str | None, typer.Option("--input", help="A text for the instruction to work on.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue PROMPT as it is, without the chat template.")] = False,
    special: Special = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the answer, token counts and speeds.")
    ] = False,
    sampling: SamplingOptions,
    n_ctx: NCtx = None,
    runtime: RuntimeOptions,
) -> None:
    """Answer one instruction; only the answer goes to stdout."""
    from weblab_local.cli.session import open_model

    params = sampling.params()
    instruction = read_all().removesuffix("\n") if prompt is None else prompt
    with open_model(model, runtime, n_ctx=n_ctx) as engine:
        code = run(engine, instruction, params, input_text, raw=raw, special=special, as_json=as_json)
    raise typer.Exit(code)


def run(
    engine: "Engine",
    instruction: str,
    params: "SamplingParams",
    context: str | None,
    *,
    raw: bool,
    special: bool,
    as_json: bool,
) -> int:
    """Print the answer as it comes, or as one JSON object at its end. Returns the exit code."""
    from weblab_local.cli.session import INTERRUPTED, cancelled_by_ctrl_c, reading_progress
    from weblab_local.engine.generation import complete

    if not instruction.strip():
        raise PromptError(_("The instruction is empty."), _("Give it as an argument or on stdin."))
    chunks: list[Chunk] = []
    generation = engine.stream(
        instruction, params, context=context, raw=raw, special=special, on_progress=reading_progress
    )
    with cancelled_by_ctrl_c(generation.cancel):
        for chunk in generation:
            chunks.append(chunk)
            if not as_json:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    completion = complete(chunks)
    _end(completion, as_json)
    return INTERRUPTED if completion.finish_reason == "cancelled" else 0


def _end(completion: "Completion", as_json: bool) -> None:
    if as_json:
        result = asdict(completion)
        result["stats"] |= {
            "prompt_speed": completion.stats.prompt_speed,
            "generation_speed": completion.stats.generation_speed,
        }
        print(json_text(result))
    else:
        print()
