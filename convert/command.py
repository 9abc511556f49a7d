"""What the commands of this house share: how an error and an interruption end them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from weblab_local import streams
from weblab_local.errors import WeblabError


def command_line() -> typer.Typer:
    """A command line without shell completion, whose help also answers to -h."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
    )


def start(app: typer.Typer, program: str) -> None:
    """Run the command line `python -m {program}`, whatever encoding its standard streams have."""
    streams.prepare()
    app(prog_name=f"python -m {program}")


def interrupt_on_terminate() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what was begun is cleaned up."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def reported(name: str, when_interrupted: str = "") -> Iterator[None]:
    """Print an error of this project as one line that begins with `name` and exit with 1; with 130 for Ctrl-C."""
    try:
        yield
    except WeblabError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if when_interrupted:
            print(f"\n{name}: interrupted; {when_interrupted}", file=sys.stderr)
        raise typer.Exit(130) from None
