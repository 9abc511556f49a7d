"""Install this checkout with a llama.cpp for this machine: what `make install` runs, on the standard library alone.

    python -m convert.install [--backend cpu|cuda|metal|vulkan] [--portable] [--extras convert,server] [--verbose]
    python -m convert.install --portable --target FOLDER [--version 0.3.35]
    python -m convert.install --wheel-cache

Native, llama.cpp is compiled for this processor and may not run on another. Portable, its CPU part is compiled for old
and new processors, and one is picked when it is loaded. With --target, llama-cpp-python alone is put into a folder, in
whatever version.

llama-cpp-python comes as source and takes minutes to compile. One that is installed already and fits is kept; one that
was compiled before on this machine is taken from a folder of wheels in the user's cache. pip's own cache would not do:
it does not know that a wheel was compiled for another backend.

What pip and CMake say goes to a log, and its end to stderr where they fail. Installing writes nothing to stdout: `make
demo` installs before it answers.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from convert import toolchains

ROOT = Path(__file__).parent.parent
LOG = ROOT / "build" / "install.log"
BACKENDS = ("cpu", "cuda", "metal", "vulkan")
OLDEST, BELOW = (0, 3, 35), (0, 3, 37)
"""Versions of llama-cpp-python that fit; pyproject.toml says the same to pip."""

_PIP = (sys.executable, "-m", "pip")
_LAST_LINES = 15
"""What is shown of pip's output where it fails: the message of a compiler or of CMake is among them."""


def default_backend() -> str:
    """Metal on Apple silicon, CUDA where its compiler and a GPU are found, else the CPU."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    if shutil.which("nvcc") and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if listed.returncode == 0 and "GPU" in listed.stdout:
            return "cuda"
    return "cpu"


@dataclass(frozen=True)
class Build:
    """What llama.cpp is compiled for. `portable` None: native, but a portable one that is installed already will do."""

    backend: str
    portable: bool | None = None

    @property
    def name(self) -> str:
        """For people and folders."""
        return f"{self.backend}, for all processors" if self.portable else self.backend


def cmake_args(build: Build) -> str:
    """CMAKE_ARGS for llama-cpp-python: the backend, and RPC always. What the user has in CMAKE_ARGS comes last."""
    flags = ["-DGGML_RPC=on"]
    if build.backend != "cpu":
        flags.append(f"-DGGML_{build.backend.upper()}=on")
    if sys.platform == "darwin" and build.backend != "metal":
        flags.append("-DGGML_METAL=off")  # where nothing is said, ggml compiles it in
    if build.portable:
        # Each backend becomes a file of its own, which finds ggml-base beside it.
        beside = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
        flags += ["-DGGML_NATIVE=off", "-DGGML_BACKEND_DL=on", "-DGGML_CPU_ALL_VARIANTS=on"]
        flags += ["-DCMAKE_INSTALL_BINDIR=llama_cpp/lib", f"-DCMAKE_INSTALL_RPATH={beside}"]
    elif sys.platform == "linux" and platform.machine() == "x86_64":
        # With ggml's AMX code compiled by GCC 12, the first batch ended in SIGILL at a tile instruction: its tile
        # configuration, compiled so on its own, is loaded without rows.
        flags += ["-DCMAKE_C_FLAGS=-mno-amx-int8", "-DCMAKE_CXX_FLAGS=-mno-amx-int8"]
    return " ".join([*flags, os.environ.get("CMAKE_ARGS", "")]).strip()


def installed_fits(build: Build) -> bool:
    """Whether this Python has a llama-cpp-python of a fitting version with the build's backend and RPC."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return False
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None or not OLDEST <= _numbers(version) < BELOW:
        return False
    libraries = {path.name.partition(".")[0] for path in (Path(spec.origin).parent / "lib").iterdir()}
    wanted = {"rpc"} | ({build.backend} - {"cpu"})
    is_portable = any(name.removeprefix("lib").startswith("ggml-cpu-") for name in libraries)
    return build.portable in (None, is_portable) and all(
        {f"libggml-{name}", f"ggml-{name}"} & libraries for name in wanted
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def wheel_cache(build: Build) -> Path:
    """Where compiled wheels are kept: by backend, flags and the processor, where they are compiled for this one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    processor = platform.machine() if build.portable else _processor()
    key = hashlib.sha256(f"{cmake_args(build)} {processor}".encode()).hexdigest()[:12]
    return base / "weblab-local" / "wheels" / f"{build.backend}{'-portable' if build.portable else ''}-{key}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[2]
    name = platform.processor()
    if sys.platform == "darwin":  # where that is "arm", of whatever generation
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"{platform.machine()} {name}"


class Pip:
    """Runs pip. Its output goes to the file `log`, which begins anew, and to stderr as well if `verbose`."""

    def __init__(self, log: Path, verbose: bool = False) -> None:
        self.log = log
        self.verbose = verbose
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")

    def run(self, *arguments: str, variables: Mapping[str, str] | None = None) -> tuple[bool, list[str]]:
        """Return whether `pip *arguments` succeeded, and the lines of its output. `variables` join the environment."""
        command = [*_PIP, *arguments, *(["--verbose"] if self.verbose else [])]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(variables or {})}
        lines = []
        with (
            self.log.open("ab") as log,
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
        ):
            log.write(f"$ {shlex.join(command)}\n".encode())
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines.append(line.decode(errors="replace").rstrip())
                if self.verbose:
                    _say(lines[-1])
        return process.returncode == 0, lines

    def fail(self, message: str, lines: Sequence[str]) -> NoReturn:
        """Exit with `message`, the end of pip's output and where all of it is."""
        told = [line for line in lines if line and not line.lstrip().startswith(("note:", "hint:", "[end of output]"))]
        end = "" if self.verbose else "".join(f"  {line}\n" for line in told[-_LAST_LINES:])
        sys.exit(f"{end}{message}\nAll that pip said is in {self.log}.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pinned_version() -> str:
    """The version of llama-cpp-python in constraints.txt."""
    pinned = re.search(r"^llama-cpp-python==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    return pinned[1]


def compiled(build: Build, pip: Pip, version: str | None = None) -> tuple[str, Path]:
    """Return llama-cpp-python's requirement and a folder with its wheel, compiled now if it was not before.

    Without `version` it is the pinned one.
    """
    version = version or pinned_version()
    requirement = f"llama-cpp-python=={version}"
    cache = wheel_cache(build)
    if not any(cache.glob(f"llama_cpp_python-{version}-*.whl")):
        if lacks := toolchains.missing(build.backend):
            sys.exit("\n".join([f"llama.cpp cannot be compiled for {build.backend} here:", *lacks]))
        minutes = 9 if build.portable else 6
        _say(f"Compiling {requirement} for {build.name}: about {minutes} minutes on two cores.")
        source_only = ["--no-cache-dir", "--no-binary", "llama-cpp-python"]
        succeeded, lines = pip.run(
            *("wheel", "--no-deps", *source_only, "--wheel-dir", str(cache), requirement),
            variables={"CMAKE_ARGS": cmake_args(build)},
        )
        if not succeeded and not any("Building wheel for llama" in line for line in lines):
            pip.fail(f"pip could not get {requirement}.", lines)
        if not succeeded:
            pip.fail(
                "llama-cpp-python did not compile. It needs a C and C++ compiler (Debian: apt install build-essential; "
                "macOS: xcode-select --install; Windows: Visual Studio Build Tools)"
                + (f" and the {build.backend} toolkit; BACKEND=cpu needs none." if build.backend != "cpu" else "."),
                lines,
            )
        if build.portable:
            for wheel in cache.glob("*.whl"):
                drop_variant(wheel, "sapphirerapids")
    return requirement, cache


def drop_variant(wheel: Path, name: str) -> None:
    """Take ggml's CPU backend `name` out of a wheel.

    GCC 12 compiles AMX wrongly (see `cmake_args`), and no processor of a computer that one buys for oneself has it.
    """
    dropped = re.compile(rf"(^|/)(lib)?ggml-cpu-{name}\.")
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                data = "".join(line for line in lines if not dropped.search(line.partition(",")[0])).encode()
            if not dropped.search(entry.filename):
                new.writestr(entry, data)
    partial.replace(wheel)


def install_llama(build: Build, pip: Pip) -> None:
    """Install llama-cpp-python, compiling it only where it was not compiled before."""
    requirement, cache = compiled(build, pip)
    _install(pip, "--no-deps", "--force-reinstall", "--no-index", "--find-links", str(cache), requirement)


def put_llama(build: Build, target: Path, pip: Pip, version: str | None = None) -> None:
    """Put llama-cpp-python alone into the folder `target`, for a program that begins its sys.path with it."""
    requirement, cache = compiled(build, pip, version)
    options = ["--no-deps", "--no-index", "--find-links", str(cache), "--upgrade"]
    _install(pip, *options, "--target", str(target), requirement)


def _install(pip: Pip, *arguments: str) -> None:
    succeeded, lines = pip.run("install", *arguments)
    if not succeeded:
        pip.fail("pip could not install what is needed.", lines)


def install_package(extras: str, pip: Pip) -> None:
    """Install this checkout (editable) with `extras`, everything but llama-cpp-python as pinned in constraints.txt."""
    _say(f"Installing weblab-local with {', '.join(extras.split(','))}: a large download where it is the first time.")
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(line for line in pinned if not line.startswith("llama-cpp-python")))
        _install(pip, "--constraint", str(constraints), "--editable", f"{ROOT}[{extras}]")


def note_processor() -> None:
    """Write beside llama.cpp's libraries, which were compiled on this machine, what they want of a processor."""
    note = "from weblab_local.llama import processor; processor.write_note(processor.library_folder())"
    subprocess.run([sys.executable, "-c", note], check=True, stdout=sys.stderr)


def main() -> None:
    """Install what is missing."""
    parser = argparse.ArgumentParser(description="Install weblab-local with a llama.cpp for this machine.")
    parser.add_argument("--backend", choices=BACKENDS, help="default: metal or cuda where there is one, else cpu")
    parser.add_argument(
        "--portable",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile for all processors of this kind, not for this one alone; default: keep what is installed",
    )
    parser.add_argument("--target", type=Path, help="put llama-cpp-python alone into this folder")
    parser.add_argument("--version", help="of llama-cpp-python in that folder; default: the one in constraints.txt")
    parser.add_argument("--extras", default="convert,server", help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="show what pip and CMake say")
    parser.add_argument("--log", type=Path, default=LOG, help="the file for what they say; default: build/install.log")
    parser.add_argument("--wheel-cache", action="store_true", help="print where its wheels are kept; install nothing")
    arguments = parser.parse_args()
    if arguments.version and not arguments.target:
        parser.error("--version is for --target: weblab-local itself is installed with the version that is pinned")
    build = Build(arguments.backend or default_backend(), arguments.portable)
    if arguments.wheel_cache:
        print(wheel_cache(build))
        return
    pip = Pip(arguments.log, arguments.verbose)
    try:
        if arguments.target:
            put_llama(build, arguments.target, pip, arguments.version)
            return
        fits = installed_fits(build)
        if not fits:
            install_llama(build, pip)
        install_package(arguments.extras, pip)
        if not fits:
            note_processor()
    except KeyboardInterrupt:
        _say("\nInterrupted. The same command goes on with what is missing.")
        sys.exit(130)


if __name__ == "__main__":
    main()
