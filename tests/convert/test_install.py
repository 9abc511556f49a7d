"""`make install` compiles llama.cpp only when it has to, and for the right backend."""

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from convert import install
from convert.install import Build
from tests.support.systems import on_posix


def test_a_llama_cpp_python_that_fits_is_kept() -> None:
    assert install.installed_fits(Build("cpu"))


def test_one_compiled_for_another_backend_does_not_fit() -> None:
    assert not install.installed_fits(Build("vulkan"))


@pytest.mark.parametrize("version", ["0.3.34", "0.2.90", "0.3.37", "0.4.0"])
def test_another_version_does_not_fit(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    assert not install.installed_fits(Build("cpu"))


def test_pyproject_and_the_installer_name_the_same_versions() -> None:
    oldest = ".".join(map(str, install.OLDEST))
    below = ".".join(map(str, install.BELOW))
    assert f'"llama-cpp-python>={oldest},<{below}"' in (install.ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("cpu", "-DGGML_RPC=on -DGGML_METAL=off"),
        ("vulkan", "-DGGML_RPC=on -DGGML_VULKAN=on -DGGML_METAL=off"),
        ("metal", "-DGGML_RPC=on -DGGML_METAL=on"),
    ],
)
def test_rpc_is_always_built_in_and_metal_on_a_mac_only_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, backend: str, expected: str
) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert install.cmake_args(Build(backend)) == expected


@pytest.mark.parametrize(
    ("system", "processor", "without_amx"),
    [("linux", "x86_64", True), ("linux", "aarch64", False), ("win32", "AMD64", False)],
)
def test_amx_is_left_out_where_gcc_compiles_it_wrongly(
    monkeypatch: pytest.MonkeyPatch, system: str, processor: str, without_amx: bool
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    assert ("-DCMAKE_CXX_FLAGS=-mno-amx-int8" in install.cmake_args(Build("cpu")).split()) is without_amx


def test_the_users_own_cmake_args_are_kept_and_get_a_wheel_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = install.wheel_cache(Build("cpu"))
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on")
    assert install.cmake_args(Build("cpu")).endswith("-DGGML_BLAS=on")
    assert install.wheel_cache(Build("cpu")) != plain


@on_posix
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


def failing_install(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command where pip finds no package: it may look nowhere but into an empty folder."""
    (folder / "packages").mkdir()
    return subprocess.run(
        [sys.executable, "-m", "convert.install", "--backend", "cpu", "--log", str(folder / "install.log"), *options],
        cwd=install.ROOT,
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_where_pip_fails_the_end_of_its_output_and_the_log_are_named(tmp_path: Path) -> None:
    done = failing_install(tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    first, *end = done.stderr.splitlines()
    assert first.startswith("Installing weblab-local with convert, server")
    assert end[-2:] == [
        "pip could not install what is needed.",
        f"All that pip said is in {tmp_path / 'install.log'}.",
    ]
    assert any("No matching distribution found for hatchling" in line for line in end)
    assert len(end) <= 17
    log = (tmp_path / "install.log").read_text()
    assert log.startswith("$ ")
    assert " install --constraint " in log
    assert "No matching distribution found for hatchling" in log


def test_verbose_shows_all_that_goes_to_the_log(tmp_path: Path) -> None:
    done = failing_install(tmp_path, "--verbose")
    assert done.returncode == 1
    assert done.stdout == ""
    _, *said = (tmp_path / "install.log").read_text().splitlines()
    assert done.stderr.splitlines()[1:-2] == [line.rstrip() for line in said]


def test_a_llama_cpp_that_is_not_to_be_had_is_not_taken_for_one_that_does_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as failure:
        install.install_llama(Build("cpu"), install.Pip(tmp_path / "install.log"))
    assert "pip could not get llama-cpp-python==" in str(failure.value)
    assert "No matching distribution found for llama-cpp-python" in str(failure.value)
    assert "compiler" not in str(failure.value)


def test_what_pip_says_stays_in_the_log_while_all_goes_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pip = install.Pip(tmp_path / "new" / "install.log")
    succeeded, lines = pip.run("--version")
    assert succeeded
    assert lines[0].startswith("pip ")
    assert capfd.readouterr() == ("", "")
    assert pip.log.read_text().splitlines()[1:] == lines


@pytest.fixture
def make_install(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs make with a virtual environment whose Python only notes on stderr what it was asked."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >&2\n')
    python.chmod(0o755)
    (tmp_path / "venv" / "pyvenv.cfg").touch()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--no-print-directory", f"VENV={tmp_path / 'venv'}", *arguments]
        return subprocess.run(command, cwd=install.ROOT, capture_output=True, text=True, check=True)

    return run


@on_posix
def test_make_says_nothing_of_its_own(make_install: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = make_install("install")
    assert (done.stdout, done.stderr.split()) == ("", ["-m", "convert.install"])
    done = make_install("install", "V=1", "BACKEND=vulkan")
    assert done.stderr.split() == ["-m", "convert.install", "--backend", "vulkan", "--verbose"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("system", "python", "folder"), [("Windows_NT", "python", "Scripts"), ("", "python3", "bin")])
def test_make_calls_what_the_system_has(tmp_path: Path, system: str, python: str, folder: str) -> None:
    """What `make demo` would do. It hands on nothing but ASCII, which survives whatever character set make has."""
    venv = tmp_path / "venv"
    command = ["make", "--no-print-directory", "--dry-run", f"OS={system}", f"VENV={venv.as_posix()}", "demo"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=install.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{python} -m venv {venv.as_posix()}\n")
    assert set(re.findall(rf"{re.escape(venv.as_posix())}/(\w+)/", done.stdout)) == {folder}
    assert done.stdout.isascii()


def test_portable_is_for_all_processors_and_has_a_wheel_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    portable = Build("cpu", portable=True)
    native = install.wheel_cache(Build("cpu"))
    assert {"-DGGML_NATIVE=off", "-DGGML_CPU_ALL_VARIANTS=on"} <= set(install.cmake_args(portable).split())
    assert install.wheel_cache(portable) != native
    before = install.wheel_cache(portable)
    monkeypatch.setattr(install, "_processor", lambda: "another")
    assert install.wheel_cache(portable) == before
    assert install.wheel_cache(Build("cpu")) != native


def test_portable_and_native_do_not_stand_for_each_other_where_one_is_asked_for() -> None:
    asked = [install.installed_fits(Build("cpu", portable)) for portable in (None, False, True)]
    assert asked in ([True, True, False], [True, False, True])


def test_a_cpu_variant_is_taken_out_of_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    names = ["libggml-cpu-sapphirerapids.so", "libggml-cpu-haswell.so", "libllama.so"]
    record = "llama_cpp_python-0.3.36.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(f"llama_cpp/lib/{name}", name)
        file.writestr(record, "".join(f"llama_cpp/lib/{name},sha256=x,1\n" for name in names) + f"{record},,\n")
    install.drop_variant(wheel, "sapphirerapids")
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == [*(f"llama_cpp/lib/{name}" for name in names[1:]), record]
        assert file.read("llama_cpp/lib/libllama.so") == b"libllama.so"
        assert "sapphirerapids" not in file.read(record).decode()
        assert "haswell" in file.read(record).decode()
    assert list(tmp_path.iterdir()) == [wheel]


@pytest.mark.parametrize(("given", "option"), [("1", "--portable"), ("0", "--no-portable")])
def test_make_passes_portable_on(
    make_install: Callable[..., subprocess.CompletedProcess[str]], given: str, option: str
) -> None:
    assert make_install("install", f"PORTABLE={given}").stderr.split()[-1] == option


def test_what_a_backend_needs_is_said_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("convert.toolchains.missing", lambda backend: [f"{backend}: a tool is missing."])
    with pytest.raises(SystemExit, match=r"cannot be compiled for vulkan here:\nvulkan: a tool is missing"):
        install.install_llama(Build("vulkan"), install.Pip(tmp_path / "install.log"))
    assert not (tmp_path / "weblab-local").exists()


def test_another_version_goes_into_a_folder_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = failing_install(tmp_path, "--target", str(tmp_path / "target"), "--version", "0.3.1")
    assert "pip could not get llama-cpp-python==0.3.1." in done.stderr
    refused = subprocess.run(
        [sys.executable, "-m", "convert.install", "--version", "0.3.1"],
        cwd=install.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "--version is for --target" in refused.stderr
