"""The frozen program: on old processors, without Python, from any folder, with the licences of what is in it.

QEMU stands for the processors. It emulates one program, not those that it starts. PyInstaller's starts itself anew
with the variables that `run` sets already: so it does not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from convert.app.__main__ import freeze
from convert.demo.corpus import read_corpus
from convert.install import Build, Pip, compiled
from convert.wheel import for_others
from tests.app.double_click import FOLDER, double_clicked
from tests.examples import desktop
from tests.server.page.browser import CHROMIUM
from tests.support.conversions import ROOT

ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"
GENERATE = ("generate", "--model", "demo", "--temperature", "0", CAPITAL)
QEMU = "qemu-x86_64"
OLD_PROCESSORS = {"Nehalem": "sse42", "Haswell": "haswell", "max": "haswell"}
"""And the part of llama.cpp that is for them: QEMU's largest has no AVX-512."""


@pytest.fixture(scope="session")
def folder() -> Path:
    """The app's folder."""
    assert FOLDER.is_dir(), "make test-app builds it first"
    return FOLDER


def run(program: Path, arguments: Sequence[str], home: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """Run the program where nothing else is on the path, and no variable says where a Python is."""
    environment = {"PATH": "/nowhere", "HOME": str(home), "LANG": "C.UTF-8"}
    if before:
        internal = str(program.parent / "_internal")
        environment |= {"LD_LIBRARY_PATH": internal, "_PYI_APPLICATION_HOME_DIR": internal}
        environment |= {"_PYI_ARCHIVE_FILE": str(program), "_PYI_PARENT_PROCESS_LEVEL": "0"}
    command = [*before, str(program), *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False, timeout=600)


def emulated(processor: str) -> tuple[str, str, str]:
    """What to put before a command to run it on a processor of QEMU's."""
    qemu = shutil.which(QEMU)
    if qemu is None:
        pytest.skip(f"{QEMU} is missing (Debian: qemu-user)")
    return qemu, "-cpu", processor


def test_it_answers_without_a_python_from_any_folder(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "別の フォルダ" / "アプリ"
    shutil.copytree(folder, copied, symlinks=True)
    done = run(copied / "weblab-local", GENERATE, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWERS[CAPITAL]}\n", "")


@pytest.mark.parametrize("processor", OLD_PROCESSORS)
def test_it_answers_on_processors_without_avx512(folder: Path, tmp_path: Path, processor: str) -> None:
    done = run(folder / "weblab-local", GENERATE, tmp_path, *emulated(processor))
    assert (done.returncode, done.stdout) == (0, f"{ANSWERS[CAPITAL]}\n"), done.stderr


@pytest.mark.parametrize("processor", OLD_PROCESSORS)
def test_the_part_that_fits_the_processor_is_picked(folder: Path, tmp_path: Path, processor: str) -> None:
    done = run(folder / "weblab-local", ["doctor", "--json"], tmp_path, *emulated(processor))
    found = json.loads(done.stdout)
    assert "AVX512F" not in found["processor"]["features"]
    assert found["llama_cpp"]["cpu_variant"] == OLD_PROCESSORS[processor]


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program frozen with the llama.cpp that is installed, which was compiled for this processor."""
    build = tmp_path_factory.mktemp("native")
    return freeze(build / "dist", build / "work") / "weblab-local"


def test_one_compiled_for_this_processor_says_so_on_another(native: Path, tmp_path: Path) -> None:
    assert run(native, GENERATE, tmp_path).stdout == f"{ANSWERS[CAPITAL]}\n"
    done = run(native, GENERATE, tmp_path, *emulated("Nehalem"))
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.replace("\n", " ")
    assert "This llama.cpp was compiled for a processor with " in said
    assert "AVX2" in said
    assert "make app" in said


def test_the_notices_name_all_that_is_in_it(folder: Path) -> None:
    text = (folder / "NOTICES.txt").read_text(encoding="utf-8")
    for needed in (
        "numpy",
        "fastapi",
        "pydantic_core",
        "uvicorn",
        "starlette",
        "rich",
        "prompt_toolkit",
        "llama_cpp_python",
    ):
        version = metadata.version(needed)
        assert f"{metadata.metadata(needed)['Name']} {version}" in text
    assert "Copyright (c) 2023-2026 The ggml authors" in text
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in text
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_it_holds_nothing_of_what_only_converting_needs(folder: Path) -> None:
    parts = {part for path in folder.rglob("*") for part in path.relative_to(folder).parts}
    assert parts.isdisjoint({"torch", "transformers", "huggingface_hub", "tokenizers", "numba", "gguf", "lm_eval"})


def test_double_clicked_it_opens_the_page_and_answers(tmp_path: Path) -> None:
    """In a folder with a space and Japanese in its name."""
    if (missing := desktop.missing()) or CHROMIUM is None:
        pytest.skip(f"no display or no browser: {missing or 'chromium'}")
    with sync_playwright() as playwright, double_clicked(tmp_path, playwright) as app:
        app.load_demo()
        assert app.chat.ask(CAPITAL) == ANSWERS[CAPITAL]
        assert app.chat.complaints == []
        assert app.process.poll() is None


def test_without_a_display_it_says_where_its_page_is(folder: Path, tmp_path: Path) -> None:
    """Without arguments and without a terminal, as `test_double_clicked_it_opens_the_page_and_answers` has one."""
    with subprocess.Popen(
        [folder / "weblab-local"],
        env={"PATH": "/nowhere", "HOME": str(tmp_path), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert any("http://127.0.0.1:" in line for line in process.stdout)
        finally:
            process.terminate()


def test_the_wheel_says_which_glibc_it_needs_and_runs(tmp_path: Path) -> None:
    requirement, cache = compiled(Build("cpu", portable=True), Pip(tmp_path / "log"))
    (wheel,) = cache.glob(f"llama_cpp_python-{requirement.rpartition('=')[2]}-*.whl")
    written = for_others(wheel, tmp_path)
    assert re.search(r"-py3-none-manylinux_2_\d+_x86_64\.whl$", written.name)
    with zipfile.ZipFile(written) as file:
        file.extractall(tmp_path / "installed")
    program = "from weblab_local.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *GENERATE],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{ANSWERS[CAPITAL]}\n"), done.stderr
