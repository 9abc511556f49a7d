"""What is made when nobody says which mixture."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import convert.run
from convert.__main__ import app
from convert.run import Request
from tests.support.conversions import run_convert


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["W4"]),
        (["--low-disk"], ["Q4_K_M"]),
        (["--imatrix", "auto"], ["Q4_K_M"]),
        (["--low-disk", "--quant", "Q8_0"], ["Q8_0"]),
        (["--quant", "W4, Q8_0"], ["W4", "Q8_0"]),
    ],
)
def test_w4_but_with_what_it_does_not_go_with(
    arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request] = []

    def run(request: Request) -> list[Path]:
        requests.append(request)
        return [Path("model.gguf")]

    monkeypatch.setattr(convert.run, "run", run)
    done = CliRunner().invoke(app, ["owner/name", *arguments])
    assert done.exit_code == 0, done.output
    assert [request.quantizations for request in requests] == [expected]


def test_the_demo_becomes_a_w4(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIFY", "0")
    done = run_convert(demo_checkpoint, "--output", tmp_path)
    assert done.stdout == f"{tmp_path / 'weblab-demo-instruction-sft-W4.gguf'}\n", done.stderr
