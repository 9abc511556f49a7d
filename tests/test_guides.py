"""The commands and programs in the README and the guides: they run, on the demo; what they name exists."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from convert.demo.corpus import CHECKPOINT, read_corpus
from tests.evaluation.support import write_data
from tests.support.conversions import ROOT, converted
from tests.support.guides import GUIDES, blocks, commands, read
from weblab_local.models.store import demo_model, models_dir

DOCUMENTS = (*GUIDES, "docs/figures.md", "docs/architecture.md", "CONTRIBUTING.md")
PACKAGES = ("convert", "tests", "weblab_local")
DEMO = CHECKPOINT.relative_to(ROOT).as_posix()
REAL_MODEL = "matsuo-lab/weblab-10b-instruction-sft"

ELSEWHERE = {
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "python -m venv": ".ci/run",
    "make install": "tests/convert/test_install.py",
    "python -m convert.install": "tests/convert/test_install.py",
    "make convert LOW_DISK=1": "tests/convert/source/download/test_low_disk.py",
    "make convert MODEL=": "tests/convert/source/download/test_cache.py",
    "weblab-local chat": "tests/cli/test_chat_terminal.py",
    "weblab-local app": "tests/server/test_app_command.py",
    "weblab-local serve": "tests/server/test_serve_command.py",
    "curl": "tests/server/test_serve_command.py",
    "weblab-local rpc-worker": "tests/machine/test_rpc.py",
    "pyinstaller": "tests/examples/test_frozen.py",
    "PYTHONPATH=build/portable pyinstaller": "tests/app/test_app.py",
    "node": "tests/examples/test_sidecar.py",
    "python -m weblab_local.evaluation": "tests/evaluation/test_lm_eval_model.py",
}
"""Commands that take more than running them once, by how they begin, and what runs them."""

ON_WINDOWS = ".venv\\"
"""How the command begins that no shell here understands."""


def without_venv(command: str) -> str:
    return command.removeprefix(".venv/bin/")


def where_else(command: str) -> str | None:
    return next((place for beginning, place in ELSEWHERE.items() if command.startswith(beginning)), None)


COMMANDS = list(dict.fromkeys(without_venv(command) for name in GUIDES for command in commands(read(name))))
PROGRAMS = list(dict.fromkeys(block for name in GUIDES for block in blocks(read(name), "python")))


def on_the_demo(command: str) -> str:
    """The same command with the demo for the real model, and one question of each task from files, not from the Hub."""
    command = command.replace(REAL_MODEL, DEMO)
    if command.startswith(("make convert", "make verify")):
        return f"{command} MODEL={DEMO}"
    if command == "python -m convert":
        return f"{command} {DEMO}"
    if command.startswith("make eval"):
        return f"{command} LIMIT=1"
    if command.startswith("weblab-local eval"):
        return re.sub(r" --limit \d+|$", " --limit 1", command, count=1) + " --data datasets"
    return command


@pytest.fixture(scope="session")
def q4_k_m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = converted(CHECKPOINT, tmp_path_factory.mktemp("q4-k-m"), "Q4_K_M")
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout with everything installed. It is gone after the test."""
    folder = tmp_path / "checkout"
    (folder / ".venv").mkdir(parents=True)
    for path in Path(sys.prefix).iterdir():
        (folder / ".venv" / path.name).symlink_to(path)
    for name in ("Makefile", "constraints.txt", "convert", "examples", "pyproject.toml", "tests", "weblab_local"):
        (folder / name).symlink_to(ROOT / name)
    for stamp in (".installed", ".installed-dev", ".installed-eval"):
        (folder / ".venv" / stamp).unlink(missing_ok=True)
        (folder / ".venv" / stamp).touch()
    write_data(folder / "datasets")
    (folder / "article.txt").write_text(read_corpus()[0].instruction, encoding="utf-8")
    (folder / "my-texts.txt").write_text(
        "吾輩は猫である。名前はまだ無い。\n\nSome English as well.\n", encoding="utf-8"
    )
    return folder


@pytest.fixture
def store(q4_k_m: Path) -> None:
    """The demo in two mixtures where converted models are."""
    models_dir().mkdir(parents=True)
    shutil.copy(q4_k_m, models_dir())
    shutil.copy(demo_model(), models_dir())


def run(*command: str, checkout: Path) -> str:
    """What the command prints on stdout, with exit code 0."""
    path = f"{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RUN_HERE = dict.fromkeys(
    on_the_demo(command) for command in COMMANDS if where_else(command) is None and not command.startswith(ON_WINDOWS)
)


@pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason="needs make and a POSIX shell")
@pytest.mark.parametrize("command", RUN_HERE)
def test_a_command_runs_on_the_demo(command: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    if not command.startswith(("make convert", "python -m convert")):
        request.getfixturevalue("store")
    assert run("bash", "-euo", "pipefail", "-c", command, checkout=checkout)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("program", [program for program in PROGRAMS if "openai" not in program])
def test_a_program_runs_on_the_demo(program: str, checkout: Path) -> None:
    assert run(sys.executable, "-c", program, checkout=checkout)


def test_what_is_run_elsewhere_is_there_and_in_use() -> None:
    assert [place for place in ELSEWHERE.values() if not (ROOT / place).exists()] == []
    assert [start for start in ELSEWHERE if not any(command.startswith(start) for command in COMMANDS)] == []


@cache
def help_of(*program: str) -> str:
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, "-m", *program, "--help"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True).stdout


def not_there(command: str) -> list[str]:
    """What of a command's targets, modules, options and files does not exist."""
    program, *arguments = shlex.split(command)
    missing = []
    if program == "make":
        makefile = read("Makefile")
        wanted = [
            f"$({argument.partition('=')[0]})" if "=" in argument else f"\n{argument}: " for argument in arguments
        ]
        missing += [text for text in wanted if text not in makefile]
    elif program == "pytest" or arguments[:2] == ["-m", "pytest"]:
        missing += [argument for argument in arguments if "/" in argument and not (ROOT / argument).exists()]
    elif program == "python" and arguments[0] == "-m" and arguments[1].partition(".")[0] in PACKAGES:
        found = importlib.util.find_spec(arguments[1])
        missing += missing_options(arguments, arguments[1]) if found else [arguments[1]]
    elif program == "weblab-local" and not arguments[0].startswith("-"):
        known = re.search(rf"^  {arguments[0]} ", help_of("weblab_local"), re.MULTILINE)
        missing += missing_options(arguments, "weblab_local", arguments[0]) if known else [arguments[0]]
    return missing


def missing_options(arguments: list[str], *program: str) -> list[str]:
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if not options or program[0] == "weblab_local.evaluation":  # lm-eval's own
        return []
    said = help_of(*program)
    return [option for option in options if option != "--help" and not re.search(rf"{option}\b", said)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_commands_name_exists(name: str) -> None:
    text = read(name)
    spans = re.findall(r"`((?:make|pytest|python -m|weblab-local)\s[^`]+)`", text)
    every = [*spans, *map(without_venv, commands(text))]
    assert every
    found = {command: not_there(command) for command in every if not command.startswith(ON_WINDOWS)}
    assert {command: missing for command, missing in found.items() if missing} == {}


def test_pre_commit_runs_what_make_check_runs() -> None:
    hooks = re.findall(r"^ +entry: \.venv/bin/(.+)$", read(".pre-commit-config.yaml"), re.MULTILINE)
    (recipe,) = re.findall(r"^check: .*\n((?:\t.+\n)+)", read("Makefile"), re.MULTILINE)
    assert hooks == re.findall(r"^\t@?\$\(BIN\)/(.+)$", recipe, re.MULTILINE)
