"""`make install` compiles llama.cpp only when it has to, and for the right backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert import install


def test_a_llama_cpp_python_that_fits_is_kept() -> None:
    assert install.installed_fits("cpu")


def test_one_compiled_for_another_backend_does_not_fit() -> None:
    assert not install.installed_fits("vulkan")


@pytest.mark.parametrize("version", ["0.3.35", "0.2.90", "0.4.0"])
def test_another_version_does_not_fit(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    assert not install.installed_fits("cpu")


def test_pyproject_and_the_installer_name_the_same_versions() -> None:
    oldest = ".".join(map(str, install.OLDEST))
    below = ".".join(map(str, install.BELOW))
    assert f'"llama-cpp-python>={oldest},<{below}"' in (install.ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("cpu", "-DGGML_RPC=on"), ("cuda", "-DGGML_RPC=on -DGGML_CUDA=on"), ("metal", "-DGGML_RPC=on -DGGML_METAL=on")],
)
def test_rpc_is_always_built_in(monkeypatch: pytest.MonkeyPatch, backend: str, expected: str) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    assert install.cmake_args(backend) == expected


def test_the_users_own_cmake_args_are_kept_and_get_a_wheel_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = install.wheel_cache("cpu")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on")
    assert install.cmake_args("cpu").endswith("-DGGML_BLAS=on")
    assert install.wheel_cache("cpu") != plain


@pytest.mark.parametrize(("listed", "expected"), [("GPU 0: NVIDIA", "cuda"), ("No devices found", "cpu")])
def test_cuda_is_chosen_only_where_a_compiler_and_a_gpu_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, expected: str
) -> None:
    for name in ("nvcc", "nvidia-smi"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{listed}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setattr(sys, "platform", "linux")
    assert install.default_backend() == expected


def test_it_needs_nothing_but_the_standard_library() -> None:
    """It runs in a virtual environment that is still empty."""
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, '.'); import convert.install"]
    subprocess.run(command, cwd=install.ROOT, check=True)
