"""Install the clients, run their tests, print the table of what works: what `make test-clients` runs.

    python -m tests.clients

A client that pip or npm cannot fetch is left out, with a message; one that is there and fails, fails this. So does a
table in docs/serving.md that is another one. What is installed is kept in build/clients until its requirements change.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.clients.environments import ENVIRONMENTS, HERE, NODE, ROOT, Environment
from tests.clients.table import table, undocumented

PATIENCE = 600
"""Seconds that pip or npm may take for one environment."""

QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""Nothing is asked of the network but packages."""

LAST_LINES = 5
"""What is shown of their output where they fail."""

NODE_TESTS = ("openai_node", "ai_sdk")


def main() -> int:
    """Return the exit status."""
    with ThreadPoolExecutor() as at_once:
        has_node = at_once.submit(installed_node)
        made = list(at_once.map(installed, ENVIRONMENTS))
    results: dict[str, Any] = {}
    status = 0
    for environment, is_made in zip(ENVIRONMENTS, made, strict=True):
        if is_made:
            with_node = NODE_TESTS if has_node.result() and environment is ENVIRONMENTS[0] else ()
            status |= tested(environment, (*environment.tests, *with_node))
            if environment.results.exists():
                results |= json.loads(environment.results.read_text(encoding="utf-8"))
    print(*table(results, "en"), sep="\n")
    if status == 0 and (lines := undocumented(results)):
        print("docs/serving.md or docs/ja/serving.md has not these lines:", *lines, sep="\n", file=sys.stderr)
        return 1
    return status


def installed(environment: Environment) -> bool:
    """Whether the environment could be made."""
    mark = environment.folder / ".installed"
    if is_newer(mark, environment.requirements):
        return True
    venv.create(environment.folder, clear=True, with_pip=True)
    options = ["-q", "--no-compile", *([] if environment.is_complete else ["--no-deps"])]
    pip: list[str | Path] = [environment.python, "-m", "pip", "install", *options, "-r", environment.requirements]
    return fetched(pip, mark, f"tests/clients/requirements/{environment.name}.txt")


def installed_node() -> bool:
    """Whether Node and its packages are there. The programs lie beside the packages, where Node looks for these."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        print("without Node, its clients are not tested", file=sys.stderr)
        return False
    NODE.mkdir(parents=True, exist_ok=True)
    for file in (HERE / "node").iterdir():
        shutil.copy(file, NODE)
    mark = NODE / ".installed"
    command = (npm, "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", NODE)
    return is_newer(mark, HERE / "node" / "package.json") or fetched(command, mark, "tests/clients/node/package.json")


def is_newer(mark: Path, requirements: Path) -> bool:
    return mark.exists() and mark.stat().st_mtime > requirements.stat().st_mtime


def fetched(command: Sequence[str | Path], mark: Path, what: str) -> bool:
    """Whether the command succeeds, which is then marked. What it says goes to a file, and its end to stderr if not."""
    log = mark.parent.with_suffix(".log")
    try:
        with log.open("wb") as said:
            subprocess.run(
                command, cwd=ROOT, env=os.environ | QUIET, stdout=said, stderr=said, timeout=PATIENCE, check=True
            )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        print(*last, f"{what}: this cannot be fetched, and is not tested", sep="\n", file=sys.stderr)
        return False
    mark.touch()
    return True


def tested(environment: Environment, names: Sequence[str]) -> int:
    """Run its tests with its own Python, and the server with this one; pytest's exit status."""
    environment.results.unlink(missing_ok=True)
    files = [HERE / f"test_{name}.py" for name in names]
    command: list[str | Path] = [environment.python, "-m", "pytest", "-c", HERE / "pytest.ini", *files]
    variables = {"WEBLAB_TEST_CLIENTS": str(environment.results), "WEBLAB_TEST_PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=os.environ | QUIET | variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
