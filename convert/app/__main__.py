"""Build the app: a folder with the program `weblab-local`, all that it needs, and the licences of that.

    python -m convert.app [--output dist]

llama.cpp is compiled for all processors first, unless it was before on this machine; then PyInstaller, which cannot
build for another system than the one it runs on, freezes the program.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from convert.command import command_line, reported
from convert.install import LOG, ROOT, Build, Pip, put_llama
from weblab_local.errors import WeblabError

app = command_line()

HERE = Path(__file__).parent
PORTABLE = ROOT / "build" / "portable"
"""Where llama-cpp-python lies that is compiled for all processors."""


@app.command()
def build(
    output: Annotated[Path, typer.Option(help="The folder to put the app's folder into.")] = ROOT / "dist",
) -> None:
    """Build the app, and print where it is."""
    with reported("convert.app", "the same command begins again"):
        put_llama(Build("cpu", portable=True), PORTABLE, Pip(LOG))
        print(freeze(output, ROOT / "build" / "app", [PORTABLE]))


def freeze(output: Path, work: Path, first: Sequence[Path] = ()) -> Path:
    """Freeze the program into `output`/weblab-local and return that folder.

    `work` is for PyInstaller's own files; packages in the folders `first` come before those that are installed. Raises
    WeblabError with what PyInstaller said.
    """
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    folders = [f"--distpath={output}", f"--workpath={work}"]
    paths = [*map(str, first), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, *folders, str(HERE / "weblab-local.spec")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WeblabError(f"PyInstaller could not build the app:\n{done.stdout}")
    folder = output / "weblab-local"
    for file in (ROOT / "LICENSE", ROOT / "weblab_local" / "server" / "page" / "icon.svg"):
        shutil.copy(file, folder)
    if sys.platform == "linux":
        shutil.copy(HERE / "weblab-local.desktop", folder)
        (folder / "weblab-local.desktop").chmod(0o755)
    return folder


if __name__ == "__main__":
    app()
