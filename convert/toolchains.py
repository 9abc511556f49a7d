"""What llama.cpp's GPU backends need to be compiled, looked for before minutes of compiling end in a compiler's words.

On the standard library alone, like `install`, which asks. It looks where CMake and the compiler will: what CMAKE_ARGS
says comes first, then VULKAN_SDK and other variables, then the system's own folders.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAYER_SETTINGS = "1.3.272"
"""The version of the Vulkan headers that brought VK_EXT_layer_settings, which ggml-vulkan.cpp uses without asking."""

_SYSTEM = ("usr/local", "usr", "opt/homebrew", "opt/local")
_SPIRV_HEADERS = ("spirv/unified1/spirv.hpp", "spirv-headers/spirv.hpp", "spirv.hpp")
"""Where ggml-vulkan looks for it, in its order."""

_VULKAN_LIBRARIES = ("libvulkan.so", "libvulkan.dylib", "vulkan-1.lib")


def missing(backend: str, root: Path = Path("/")) -> list[str]:
    """Return a sentence for each thing that is missing or too old for compiling `backend`, with what to install.

    `backend` is one of `install`'s; the CPU's needs nothing that is looked for here. The system's own folders are
    looked for under `root`.
    """
    checks: Mapping[str, Callable[[Path], list[str]]] = {"vulkan": _vulkan, "cuda": _cuda, "metal": _metal}
    return checks[backend](root) if backend in checks else []


@dataclass(frozen=True)
class _Places:
    """Folders to search, in the order in which CMake and the compiler do."""

    includes: Sequence[Path]
    prefixes: Sequence[Path]
    """Folders with `include`, `lib`, `share` in them."""

    def header(self, *names: str) -> Path | None:
        """The first of the headers that is there."""
        return _first(folder / name for name in names for folder in self.includes)


def _vulkan(root: Path) -> list[str]:
    defined = _cmake_definitions()
    places = _places(defined, root)
    sentences = []
    glslc = defined.get("Vulkan_GLSLC_EXECUTABLE") or shutil.which("glslc", path=_search_path("VULKAN_SDK"))
    if not glslc or not Path(glslc).exists():
        sentences.append(
            "glslc, which compiles the shaders, is missing (Debian: apt install glslc; macOS: brew install shaderc; or "
            "the Vulkan SDK, with VULKAN_SDK set to its folder)."
        )
    core = places.header("vulkan/vulkan_core.h")
    if core is None or not (core.parent / "vulkan.hpp").exists():
        sentences.append(
            "The Vulkan headers are missing (Debian: apt install libvulkan-dev; macOS: brew install vulkan-headers; or "
            "the Vulkan SDK, with VULKAN_SDK set to its folder)."
        )
    else:
        text = core.read_text(encoding="utf-8", errors="replace")
        if not re.search(r"^#define VK_EXT_layer_settings 1$", text, re.MULTILINE):
            sentences.append(
                f"The Vulkan headers in {core.parent} are too old: {_header_version(text)}, and llama.cpp needs "
                f"{LAYER_SETTINGS} (Debian 12 has 1.3.239). Newer ones may lie in any folder, with the loader and the "
                "driver as they are: name it in CMAKE_ARGS=-DVulkan_INCLUDE_DIR=FOLDER, or set VULKAN_SDK to that of "
                "the Vulkan SDK."
            )
    if not defined.get("Vulkan_LIBRARY") and not _library(places, _VULKAN_LIBRARIES):
        sentences.append(
            "The Vulkan loader's library is missing (Debian: apt install libvulkan-dev; macOS: brew install "
            "vulkan-loader; or the Vulkan SDK, with VULKAN_SDK set to its folder)."
        )
    package = defined.get("SPIRV-Headers_DIR") or _cmake_package(places, "SPIRV-Headers")
    if not package or places.header(*_SPIRV_HEADERS) is None:
        sentences.append(
            "The SPIR-V headers are missing (Debian: apt install spirv-headers; macOS: brew install spirv-headers; or "
            "the Vulkan SDK, with VULKAN_SDK set to its folder)."
        )
    return sentences


def _cmake_definitions() -> dict[str, str]:
    """The `-DNAME=VALUE` of CMAKE_ARGS, in which a type (`-DNAME:PATH=VALUE`) is left out."""
    arguments = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    joined = re.sub(r"(^|\0)-D\0", r"\1-D", "\0".join(arguments)).split("\0")
    matches = (re.fullmatch(r"-D([^:=]+)(?::[^=]*)?=(.*)", argument, re.DOTALL) for argument in joined)
    return {match[1]: match[2] for match in matches if match}


def _places(defined: Mapping[str, str], root: Path) -> _Places:
    prefixes = [
        *_folders(os.environ.get("VULKAN_SDK", ""), os.pathsep),
        *_folders(defined.get("CMAKE_PREFIX_PATH", ""), ";"),
        *_folders(os.environ.get("CMAKE_PREFIX_PATH", ""), os.pathsep),
        *(root / folder for folder in _SYSTEM),
    ]
    flags = shlex.split(f"{defined.get('CMAKE_CXX_FLAGS', '')} {os.environ.get('CXXFLAGS', '')}")
    includes = [
        *(Path(folder) for folder in re.findall(r"-(?:I|isystem)\0?([^\0]+)", "\0".join(flags))),
        *_folders(defined.get("Vulkan_INCLUDE_DIR", ""), ";"),
        *(folder for name in ("CPATH", "CPLUS_INCLUDE_PATH") for folder in _folders(os.environ.get(name, ""))),
        *(prefix / "include" for prefix in prefixes),
    ]
    return _Places(includes, prefixes)


def _folders(text: str, separator: str = os.pathsep) -> Iterator[Path]:
    return (Path(folder) for folder in text.split(separator) if folder)


def _first(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _library(places: _Places, names: Sequence[str]) -> Path | None:
    folders = (
        folder
        for prefix in places.prefixes
        for pattern in ("lib", "lib64", "lib/*-*-*")
        for folder in sorted(prefix.glob(pattern))
    )
    return _first(folder / name for folder in folders for name in names)


def _cmake_package(places: _Places, name: str) -> Path | None:
    """The file of a CMake package, where `find_package(... CONFIG)` looks for it."""
    patterns = [f"{folder}/{name}/{name}Config.cmake" for folder in ("share/cmake", "lib/cmake", "lib/*/cmake")]
    return next((path for prefix in places.prefixes for pattern in patterns for path in prefix.glob(pattern)), None)


def _search_path(*variables: str) -> str:
    """PATH after the folders of programs in the toolkits that the `variables` name."""
    toolkits = [Path(folder) for variable in variables if (folder := os.environ.get(variable))]
    return os.pathsep.join([*(str(toolkit / "bin") for toolkit in toolkits), os.environ.get("PATH", "")])


def _header_version(text: str) -> str:
    """Like "1.3.239", from vulkan_core.h."""
    complete = re.search(r"define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(0, (\d+), (\d+),", text)
    patch = re.search(r"define VK_HEADER_VERSION (\d+)", text)
    return f"{complete[1]}.{complete[2]}.{patch[1]}" if complete and patch else "of an unknown version"


def _cuda(root: Path) -> list[str]:
    defined = _cmake_definitions()
    path = os.pathsep.join([_search_path("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"), str(root / "usr/local/cuda/bin")])
    named = defined.get("CMAKE_CUDA_COMPILER") or os.environ.get("CUDACXX")
    nvcc = shutil.which(named or "nvcc", path=path)
    if nvcc is None:
        return [
            f"The CUDA compiler {named or 'nvcc'} is missing: install NVIDIA's CUDA toolkit (Debian: apt install "
            "nvidia-cuda-toolkit), and set CUDA_HOME to its folder where that is not /usr/local/cuda."
        ]
    toolkit = _version(nvcc, "--version", pattern=r"release (\d+)\.(\d+)")
    nvidia_smi = shutil.which("nvidia-smi")
    driver = _version(nvidia_smi, pattern=r"CUDA (?:\w+ )?Version\s*:\s*(\d+)\.(\d+)") if nvidia_smi else None
    # Within a major version programs run with any driver of it; whoever compiles where no card is, has none to compare.
    if toolkit and driver and toolkit[0] > driver[0]:
        return [
            f"The CUDA toolkit is {toolkit[0]}.{toolkit[1]}, and the driver runs programs of CUDA {driver[0]}.x at "
            f"most: install a newer driver, or a toolkit of version {driver[0]} and set CUDA_HOME to its folder."
        ]
    return []


def _version(program: str, *arguments: str, pattern: str) -> tuple[int, int] | None:
    """The two numbers that `pattern` finds in what a program says; None where it does not run or says no such thing."""
    try:
        said = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(pattern, said)
    return (int(match[1]), int(match[2])) if match else None


def _metal(_root: Path) -> list[str]:
    if platform.system() != "Darwin":
        return ["Metal is there on macOS only."]
    xcode_select = shutil.which("xcode-select")
    if xcode_select is None or subprocess.run([xcode_select, "-p"], capture_output=True, check=False).returncode:
        return ["Apple's command line tools, which bring the compiler, are missing: xcode-select --install."]
    return []
