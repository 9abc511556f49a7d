"""The commands and their options; what each does is in the module of its name."""

import sys
from typing import Annotated

import typer

from weblab_local.errors import WeblabError

app = typer.Typer(
    name="weblab-local",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="weblab-10b-instruction-sft on your own computer, in Japanese and English, offline.\n\n"
    "The model is licensed under CC BY-NC 4.0: non-commercial use only.",
)

Model = Annotated[
    str | None, typer.Option("--model", help='A GGUF\'s path, a name in the store, or "demo"; default: the newest.')
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="At most so many tokens in an answer.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy decoding.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes a run repeatable.")]


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The instruction; default: read from stdin.")] = None,
    model: Model = None,
    input_text: Annotated[str | None, typer.Option("--input", help="A text for the instruction to work on.")] = None,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 512,
    seed: Seed = None,
) -> None:
    """One answer on stdout, nothing else."""
    from weblab_local.cli.generate import run

    run(sys.stdin.read().rstrip("\n") if prompt is None else prompt, model, input_text, temperature, max_tokens, seed)


@app.command()
def chat(model: Model = None, temperature: Temperature = 0.7, max_tokens: MaxTokens = 512, seed: Seed = None) -> None:
    """Talk with the model; every line is one instruction. Ctrl-D leaves."""
    from weblab_local.cli.chat import run

    run(model, temperature, max_tokens, seed)


def main() -> None:
    """Run the command line; errors of this package are printed with their remedy, without a traceback."""
    try:
        app()
    except WeblabError as error:
        print(f"weblab-local: {error}", file=sys.stderr)
        sys.exit(1)
