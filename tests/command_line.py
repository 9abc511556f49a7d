"""The command line as the tests call it, in their own process."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from weblab_local.cli import main


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
