"""What compiling for a GPU needs, in folders made for it: each thing that is missing has its sentence, and no other."""

import os
import platform
import shlex
from pathlib import Path

import pytest

from convert import install
from convert.toolchains import missing

VARIABLES = ("VULKAN_SDK", "CMAKE_ARGS", "CMAKE_PREFIX_PATH", "CXXFLAGS", "CPATH", "CPLUS_INCLUDE_PATH")
CUDA_VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDACXX")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="programs are stood in for by shell scripts")


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that names nothing, and an empty folder as the only one on PATH."""
    for variable in (*VARIABLES, *CUDA_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def program(folder: Path, name: str, says: str = "", code: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(says)}\nexit {code}\n")
    path.chmod(0o755)
    return path


def vulkan_headers(include: Path, patch: int, minor: int = 3) -> None:
    """What of the Vulkan headers of 1.`minor`.`patch` counts here; VK_EXT_layer_settings came with 1.3.272."""
    folder = include / "vulkan"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"#define VK_HEADER_VERSION {patch}"]
    lines += [f"#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, {minor}, VK_HEADER_VERSION)"]
    lines += ["#define VK_EXT_layer_settings 1"] if (minor, patch) >= (3, 272) else []
    (folder / "vulkan_core.h").write_text("\n".join(lines) + "\n")
    (folder / "vulkan.hpp").write_text("")


def spirv_headers(prefix: Path) -> None:
    for file in ("include/spirv/unified1/spirv.hpp", "share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake"):
        (prefix / file).parent.mkdir(parents=True, exist_ok=True)
        (prefix / file).write_text("")


def debian(root: Path, programs: Path, patch: int, minor: int = 3) -> None:
    """Where Debian's packages put what is needed."""
    program(programs, "glslc")
    vulkan_headers(root / "usr/include", patch, minor)
    spirv_headers(root / "usr")
    (root / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (root / "usr/lib/x86_64-linux-gnu/libvulkan.so").write_text("")


def test_a_machine_with_nothing_lacks_four_things_for_vulkan(root: Path) -> None:
    glslc, headers, loader, spirv = missing("vulkan", root)
    assert "glslc" in glslc
    assert "Vulkan headers are missing" in headers
    assert "loader" in loader
    assert "SPIR-V" in spirv
    for sentence in (glslc, headers, loader, spirv):
        assert "apt install" in sentence
        assert "VULKAN_SDK" in sentence


def test_a_debian_with_new_headers_lacks_nothing(root: Path, programs: Path) -> None:
    debian(root, programs, 309, minor=4)
    assert missing("vulkan", root) == []


def test_headers_that_are_too_old_are_named_with_both_versions(root: Path, programs: Path) -> None:
    debian(root, programs, 239)
    (sentence,) = missing("vulkan", root)
    assert "1.3.239" in sentence
    assert "1.3.272" in sentence
    assert str(root / "usr/include/vulkan") in sentence
    assert "Vulkan_INCLUDE_DIR" in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        "-DVulkan_INCLUDE_DIR={}",
        "-DVulkan_INCLUDE_DIR:PATH={}",
        "-D Vulkan_INCLUDE_DIR={}",
        "-DCMAKE_CXX_FLAGS='-O2 -I{}'",
    ],
)
def test_headers_that_cmake_is_told_of_count(
    root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    debian(root, programs, 239)
    vulkan_headers(tmp_path / "newer", 309, minor=4)
    monkeypatch.setenv("CMAKE_ARGS", f"-DGGML_NATIVE=off {arguments.format(tmp_path / 'newer')}")
    assert missing("vulkan", root) == []
    vulkan_headers(tmp_path / "newer", 250)
    (sentence,) = missing("vulkan", root)
    assert "1.3.250" in sentence


def test_the_vulkan_sdk_has_everything(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = tmp_path / "sdk"
    program(sdk / "bin", "glslc")
    vulkan_headers(sdk / "include", 309, minor=4)
    spirv_headers(sdk)
    (sdk / "lib").mkdir()
    (sdk / "lib/libvulkan.dylib").write_text("")
    monkeypatch.setenv("VULKAN_SDK", str(sdk))
    assert missing("vulkan", root) == []


def test_the_sdk_comes_before_the_systems_headers(
    root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian(root, programs, 239)
    vulkan_headers(tmp_path / "sdk/include", 309, minor=4)
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path / "sdk"))
    assert missing("vulkan", root) == []


def test_a_loader_and_a_compiler_that_cmake_is_told_of_count(
    root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian(root, programs, 309, minor=4)
    (programs / "glslc").unlink()
    (root / "usr/lib/x86_64-linux-gnu/libvulkan.so").unlink()
    assert len(missing("vulkan", root)) == 2
    glslc = program(tmp_path / "elsewhere", "glslc")
    monkeypatch.setenv("CMAKE_ARGS", f"-DVulkan_GLSLC_EXECUTABLE={glslc} -DVulkan_LIBRARY=/x/libvulkan.so.1")
    assert missing("vulkan", root) == []


def test_headers_without_the_package_that_cmake_looks_for_are_missing(root: Path, programs: Path) -> None:
    debian(root, programs, 309, minor=4)
    (root / "usr/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake").unlink()
    (sentence,) = missing("vulkan", root)
    assert "spirv-headers" in sentence


def nvcc(folder: Path, version: str) -> Path:
    said = f"nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {version}, V{version}.131"
    return program(folder, "nvcc", said)


def nvidia_smi(folder: Path, version: str, name: str = "CUDA Version") -> Path:
    return program(folder, "nvidia-smi", f"| NVIDIA-SMI 550.54   Driver Version: 550.54   {name}: {version}     |")


def test_without_nvcc_the_toolkit_is_missing(root: Path) -> None:
    (sentence,) = missing("cuda", root)
    assert "nvcc" in sentence
    assert "CUDA_HOME" in sentence


def test_nvcc_is_found_where_the_toolkit_lies(
    root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc(root / "usr/local/cuda/bin", "12.4")
    assert missing("cuda", root) == []
    nvidia_smi(programs, "11.8")
    assert "12.4" in missing("cuda", root)[0]
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "cuda-11/bin", "11.8").parent.parent))
    assert missing("cuda", root) == []


@pytest.mark.parametrize(
    ("toolkit", "driver", "fits"),
    [("12.4", "12.4", True), ("12.9", "12.2", True), ("11.8", "12.4", True), ("13.0", "12.8", False)],
)
def test_a_toolkit_newer_than_the_driver_by_a_major_version_does_not_fit(
    root: Path, programs: Path, toolkit: str, driver: str, fits: bool
) -> None:
    nvcc(programs, toolkit)
    nvidia_smi(programs, driver)
    sentences = missing("cuda", root)
    assert bool(sentences) is not fits
    for sentence in sentences:
        assert toolkit in sentence
        assert f"version {driver.split('.')[0]}" in sentence


def test_a_driver_that_words_its_version_otherwise_is_understood(root: Path, programs: Path) -> None:
    nvcc(programs, "13.0")
    nvidia_smi(programs, "12.8", name="CUDA UMD Version")
    assert len(missing("cuda", root)) == 1


def test_a_compiler_that_says_nothing_of_its_version_is_not_refused(root: Path, programs: Path) -> None:
    program(programs, "nvcc", code=1)
    nvidia_smi(programs, "12.4")
    assert missing("cuda", root) == []


def test_metal_is_there_on_macos_with_apples_tools(root: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    (sentence,) = missing("metal", root)
    assert "macOS" in sentence
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    (sentence,) = missing("metal", root)
    assert "xcode-select --install" in sentence
    program(programs, "xcode-select", code=2)
    assert missing("metal", root) == [sentence]
    program(programs, "xcode-select", "/Library/Developer/CommandLineTools")
    assert missing("metal", root) == []


def test_every_backend_that_can_be_installed_can_be_asked_about(root: Path) -> None:
    lacking = {backend: bool(missing(backend, root)) for backend in install.BACKENDS if backend != "metal"}
    assert lacking == {"cpu": False, "cuda": True, "vulkan": True}
