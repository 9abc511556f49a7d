"""The command line as the tests call it, in their own process."""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from weblab_local.cli import main
from weblab_local.cli.app import app


@dataclass(frozen=True)
class Done:
    """What a run of the command line left."""

    code: int
    stdout: str
    stderr: str


class CommandLine:
    """`weblab-local`, run in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, stdin: str = "") -> Done:
        self._monkeypatch.setattr(sys, "argv", ["weblab-local", *map(str, arguments)])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        return Done(code if isinstance(code, int) else 0, *self._capsys.readouterr())


def commands(command: Any = None, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands of the program, by the words they are called with."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, *path, name)


COMMANDS = dict(commands())
