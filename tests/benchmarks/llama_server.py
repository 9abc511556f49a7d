"""llama.cpp's own server, compiled once out of the source package of the llama-cpp-python that is installed.

    python -m tests.benchmarks.llama_server    # prints where it is

It has the flags with which `make install` compiles llama.cpp for this processor. What is compiled stays in the user's
cache; it takes about 15 minutes on two cores.
"""

import os
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

from convert.install import Build, cmake_args
from tests.benchmarks.llama_source import llama_cpp_source

_OFF = ("LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_USE_PREBUILT_UI")


def cache() -> Path:
    """Where sources and builds are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weblab-local" / "llama-server"


def llama_server() -> Path:
    """The program, compiled now if it was not before for this version."""
    target = cache() / f"build-{version('llama-cpp-python')}"
    program = target / "bin" / "llama-server"
    if not program.exists():
        target.mkdir(parents=True, exist_ok=True)
        source = llama_cpp_source(cache())
        options = ["-DCMAKE_BUILD_TYPE=Release", *shlex.split(cmake_args(Build("cpu", portable=False)))]
        options += [f"-D{name}=OFF" for name in _OFF]
        subprocess.run(["cmake", "-S", source, "-B", target, *options], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", target, "--target", "llama-server", "--parallel", "2"], check=True)
    return program


if __name__ == "__main__":
    print(llama_server())
