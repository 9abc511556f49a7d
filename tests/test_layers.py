"""The layers of both houses hold: an import that goes the other way fails `make check`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.conversions import ROOT

UPWARD = {
    "the border to llama.cpp knows the engine": ("weblab_local/llama/kv_types.py", "import weblab_local.engine.engine"),
    "the memory plan knows the engine": ("weblab_local/machine/plan.py", "import weblab_local.engine.engine"),
    "the engine knows the server": ("weblab_local/engine/request.py", "import weblab_local.server.app"),
    "the server knows the evaluation": ("weblab_local/server/config.py", "import weblab_local.evaluation.tasks"),
    "the runtime knows the conversion": ("weblab_local/models/store.py", "import convert.errors"),
    "the runtime loads torch": ("weblab_local/engine/scoring.py", "import torch"),
    "the chat calls llama.cpp": ("weblab_local/chat/session.py", "import llama_cpp"),
    "a source knows what is written": ("convert/source/checkpoint.py", "import convert.writing.plan"),
    "the reference knows its verification": ("convert/reference/forward.py", "import convert.verification.report"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", str(folder / "pyproject.toml")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for house in ("weblab_local", "convert"):
        shutil.copytree(
            ROOT / house, folder / house, ignore=shutil.ignore_patterns("__pycache__", "*.gguf", "*.safetensors")
        )
    return folder


def test_the_tree_keeps_its_layers(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("module", "line"), UPWARD.values(), ids=UPWARD)
def test_an_import_that_goes_the_other_way_is_refused(copy: Path, module: str, line: str) -> None:
    path = copy / module
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n\n{line}\n", encoding="utf-8")
    try:
        done = lint(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    source, target = module.removesuffix(".py").replace("/", "."), line.removeprefix("import ")
    assert f"{source} -> {target.partition('.')[0]}" in done.stdout
