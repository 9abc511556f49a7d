"""Install this checkout with a llama.cpp for this machine: what `make install` runs, on the standard library alone.

    python -m convert.install [--backend cpu|cuda|metal|vulkan] [--extras convert,server]

llama-cpp-python comes as source and takes minutes to compile. One that is installed already and fits is kept; one that
was compiled before on this machine is taken from a folder of wheels in the user's cache. pip's own cache would not do:
it does not know that a wheel was compiled for another backend.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BACKENDS = ("cpu", "cuda", "metal", "vulkan")
OLDEST, BELOW = (0, 3, 36), (0, 4)
"""Versions of llama-cpp-python that fit; pyproject.toml says the same to pip."""


def default_backend() -> str:
    """Metal on Apple silicon, CUDA where its compiler and a GPU are found, else the CPU."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    if shutil.which("nvcc") and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if listed.returncode == 0 and "GPU" in listed.stdout:
            return "cuda"
    return "cpu"


def cmake_args(backend: str) -> str:
    """CMAKE_ARGS for llama-cpp-python: the backend, and RPC always. What the user has in CMAKE_ARGS comes last."""
    flags = ["-DGGML_RPC=on"] + ([] if backend == "cpu" else [f"-DGGML_{backend.upper()}=on"])
    return " ".join([*flags, os.environ.get("CMAKE_ARGS", "")]).strip()


def installed_fits(backend: str) -> bool:
    """Whether this Python has a llama-cpp-python of a fitting version with `backend` and RPC compiled in."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return False
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None or not OLDEST <= _numbers(version) < BELOW:
        return False
    libraries = {path.name.partition(".")[0] for path in (Path(spec.origin).parent / "lib").iterdir()}
    wanted = {"rpc"} | ({backend} - {"cpu"})
    return all({f"libggml-{name}", f"ggml-{name}"} & libraries for name in wanted)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def wheel_cache(backend: str) -> Path:
    """Where compiled wheels are kept: by backend, flags and processor, since llama.cpp is compiled for this one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(f"{cmake_args(backend)} {_processor()}".encode()).hexdigest()[:12]
    return base / "weblab-local" / "wheels" / f"{backend}-{key}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[2]
    return f"{platform.machine()} {platform.processor()}"


def install_llama(backend: str) -> None:
    """Install llama-cpp-python for `backend`, compiling it only where it was not compiled before."""
    pinned = re.search(r"^llama-cpp-python==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    requirement = pinned[0] if pinned else "llama-cpp-python"
    cache = wheel_cache(backend)
    version = requirement.rpartition("=")[2]
    if not any(cache.glob(f"llama_cpp_python-{version}-*.whl")):
        print(f"Compiling {requirement} for {backend}: about 6 minutes on two cores.", flush=True)
        environment = os.environ | {"CMAKE_ARGS": cmake_args(backend)}
        source_only = ["--no-cache-dir", "--no-binary", "llama-cpp-python"]
        failed = subprocess.run(
            [*_PIP, "wheel", "--no-deps", *source_only, "--wheel-dir", str(cache), requirement],
            env=environment,
            check=False,
        ).returncode
        if failed:
            sys.exit(
                "llama-cpp-python did not compile. It needs a C and C++ compiler (Debian: apt install build-essential; "
                "macOS: xcode-select --install; Windows: Visual Studio Build Tools)"
                + (f" and the {backend} toolkit; BACKEND=cpu needs none." if backend != "cpu" else ".")
            )
    _pip_install("--no-deps", "--force-reinstall", "--no-index", "--find-links", str(cache), requirement)


_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def _pip_install(*arguments: str) -> None:
    if subprocess.run([*_PIP, "install", "--quiet", *arguments], check=False).returncode:
        sys.exit("pip could not install what is needed; its message is above.")


def install_package(extras: str) -> None:
    """Install this checkout (editable) with `extras`, everything but llama-cpp-python as pinned in constraints.txt."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(line for line in pinned if not line.startswith("llama-cpp-python")))
        _pip_install("--constraint", str(constraints), "--editable", f"{ROOT}[{extras}]")


def main() -> None:
    """Install what is missing."""
    parser = argparse.ArgumentParser(description="Install weblab-local with a llama.cpp for this machine.")
    parser.add_argument("--backend", choices=BACKENDS, help="default: metal or cuda where there is one, else cpu")
    parser.add_argument("--extras", default="convert,server", help="default: %(default)s")
    arguments = parser.parse_args()
    backend = arguments.backend or default_backend()
    if installed_fits(backend):
        print(f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')} with {backend} is here already.")
    else:
        install_llama(backend)
    install_package(arguments.extras)


if __name__ == "__main__":
    main()
