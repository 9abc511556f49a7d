"""llama.cpp's source, out of the source package of the llama-cpp-python that is installed."""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path


def llama_cpp_source(folder: Path) -> Path:
    """Fetch and unpack the source package into `folder`, unless it is there; llama.cpp's root in it."""
    package = f"llama_cpp_python-{version('llama-cpp-python')}"
    root = folder / package / "vendor" / "llama.cpp"
    if not root.is_dir():
        requirement = f"llama-cpp-python=={version('llama-cpp-python')}"
        options = ["--quiet", "--no-deps", "--no-cache-dir", "--no-binary", ":all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
        with tarfile.open(folder / f"{package}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return root
