"""What this processor can do, and whether the llama.cpp here was compiled for one that can do more.

llama.cpp is compiled either for the processor it is compiled on (native), or many times, for old ones and new ones, of
which ggml picks one when it is loaded (portable). A native one on a processor that lacks an instruction ends the
process, so a note beside the library says what it was compiled for, and is read before ggml computes anything.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from weblab_local.errors import WeblabError
from weblab_local.i18n import _

NOTE = "compiled-for.json"
"""The note's name, in the library's folder: {"features": ["AVX2", ...]}."""

_X86_64 = ("SSE3", "SSSE3", "SSE41", "SSE42", "POPCNT", "AVX", "F16C", "FMA3", "AVX2", "BMI", "BMI2", "LZCNT", "MOVBE")
_AVX512 = ("F", "CD", "VL", "BW", "DQ", "VNNI", "VBMI", "BF16")
_ARM64 = ("ASIMD", "ASIMDHP", "ASIMDDP", "ASIMDFHM", "FPHP", "SVE")
_COMPILERS_USE = frozenset([*_X86_64, *(f"AVX512{name}" for name in _AVX512), *_ARM64])
"""Of numpy's names of processor features, those that a compiler makes instructions of."""


def features() -> frozenset[str]:
    """Return which of the features that compilers use this processor has, by numpy's names of them."""
    return frozenset(name for name, has in _detected().items() if has)


def _detected() -> Mapping[str, bool]:
    """What numpy asks the processor itself for, and of Linux what numpy does not ask for."""
    found: dict[str, bool] = import_module("numpy._core._multiarray_umath").__cpu_features__
    detected = {name: found[name] for name in _COMPILERS_USE & set(found)}
    with suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags:
            detected["AVX_VNNI"] = "avx_vnni" in flags[1].split()
    return detected


def library_folder() -> Path:
    """Return the folder that libllama was loaded from."""
    from llama_cpp import llama_cpp

    return Path(llama_cpp._lib._name).parent


def is_portable(folder: Path) -> bool:
    """Return whether the libraries in `folder` hold ggml for several processors, each in a file of its own."""
    return any(path.name.removeprefix("lib").startswith("ggml-cpu-") for path in folder.iterdir())


def write_note(folder: Path) -> None:
    """Note beside the libraries in `folder`, compiled on this machine, what they need; a portable one needs nothing."""
    note = folder / NOTE
    if is_portable(folder):
        note.unlink(missing_ok=True)
    else:
        note.write_text(note_text(), encoding="utf-8")


def note_text() -> str:
    """Return what the note says of a library that was compiled for this processor."""
    return json.dumps({"features": sorted(features())}) + "\n"


def missing(folder: Path) -> list[str]:
    """Return the features that the libraries in `folder` were compiled with and this processor lacks.

    None are known where there is no note, as beside a portable build, or one that cannot be read.
    """
    try:
        noted = json.loads((folder / NOTE).read_text(encoding="utf-8"))["features"]
        detected = _detected()
        return sorted(name for name in noted if not detected.get(name, True))
    except (OSError, ValueError, KeyError, TypeError):
        return []


@cache
def require() -> None:
    """Raise WeblabError where llama.cpp was compiled for instructions that this processor does not have."""
    if lacks := missing(library_folder()):
        raise WeblabError(
            _("This llama.cpp was compiled for a processor with {features}, which this one does not have.").format(
                features=", ".join(lacks)
            ),
            _("Use one that is compiled for all processors: make install PORTABLE=1, or make app for a program."),
        )
