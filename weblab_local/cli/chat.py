"""`weblab-local chat`: a conversation with the model. It is in `chat_terminal`, its commands in `chat_commands`."""

import os
from typing import Annotated

import typer

from weblab_local.cli.options import Model, NCtx, RuntimeOptions, SamplingOptions
from weblab_local.cli.signatures import command

NO_HISTORY_VARIABLE = "WEBLAB_LOCAL_NO_HISTORY"


@command
def chat(
    *,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System message, put before the first instruction.")] = None,
    no_history: Annotated[
        bool,
        typer.Option(
            "--no-history",
            help="Keep nothing of what is typed for the next chat, and recall nothing. The environment variable "
            "WEBLAB_LOCAL_NO_HISTORY, set to 1, does the same.",
        ),
    ] = False,
    read_ahead: Annotated[
        bool, typer.Option("--read-ahead/--no-read-ahead", help="Read what is typed while it is typed.")
    ] = True,
    sampling: SamplingOptions,
    n_ctx: NCtx = None,
    runtime: RuntimeOptions,
) -> None:
    """Chat with the model in the terminal."""
    from weblab_local.cli.chat_terminal import run
    from weblab_local.cli.session import open_model
    from weblab_local.machine.devices import on_battery

    params = sampling.params()
    with open_model(model, runtime, n_ctx=n_ctx) as engine:
        history = not (no_history or _no_history_wanted())
        run(engine, params, system, history=history, read_ahead=read_ahead and not on_battery())


def _no_history_wanted() -> bool:
    return os.environ.get(NO_HISTORY_VARIABLE, "") not in ("", "0")
