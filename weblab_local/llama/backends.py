"""llama.cpp made ready to be called, and what it says of itself."""

import os
import re
import threading
from functools import cache
from pathlib import Path

from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama import compatibility, ggml, log, processor
from weblab_local.llama.forks import Home
from weblab_local.llama.ggml import POINTER, SIZE, TEXT

_loading = threading.Lock()
if hasattr(os, "register_at_fork"):  # held over a fork: in a child it is free, and what was being loaded is there
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)

_loaded: dict[str, Path] = {}
"""Of a build whose backends are files of their own, the file of each that was loaded."""

_FORKABLE = {"CPU", "BLAS", "RPC"}
"""Backends that a forked child can use although they were started in its parent: no driver behind them knows it."""


def start() -> None:
    """Route the log, see that the library fits, let ggml find its backends. Doing it again does nothing.

    Raises WeblabError for a llama.cpp that cannot work with this program or on this processor, or in a forked child
    with its parent's GPUs.
    """
    from llama_cpp import llama_cpp

    processor.require()
    log.route()
    load()
    compatibility.require()
    if not _home().is_here() and (unusable := sorted(set(_with_devices()) - _FORKABLE)):
        raise WeblabError(
            _("llama.cpp was used before this process was forked off, and {backends} cannot go on in it.").format(
                backends=", ".join(unusable)
            ),
            _("Load the first model after the fork, or start processes with multiprocessing's method 'spawn'."),
        )
    llama_cpp.llama_backend_init()
    _hold_lock_over_forks()


@cache
def _hold_lock_over_forks() -> None:
    """Take ggml's one lock for as long as the process forks: a child where it stayed locked could load no model."""
    if hasattr(os, "register_at_fork"):
        take, release = (ggml.function(f"ggml_critical_section_{end}", None) for end in ("start", "end"))
        os.register_at_fork(before=take, after_in_parent=release, after_in_child=release)


@cache
def _home() -> Home:
    """The process in which llama.cpp was started, known from the first call on."""
    return Home()


def _with_devices() -> list[str]:
    """Names of the backends that have devices, without workers' addresses. Asks no device, which would ask a driver."""
    count = ggml.function("ggml_backend_reg_count", SIZE)()
    registries = [ggml.function("ggml_backend_reg_get", POINTER, SIZE)(index) for index in range(count)]
    return [
        ggml.function("ggml_backend_reg_name", TEXT, POINTER)(registry).decode().partition("[")[0]
        for registry in registries
        if ggml.function("ggml_backend_reg_dev_count", SIZE, POINTER)(registry)
    ]


def load() -> None:
    """Load the backends that are files beside libllama, where ggml has none compiled in. Once.

    ggml itself would look for them beside the program and in the working directory, where anybody may put a file.
    """
    with _loading:
        if ggml.function("ggml_backend_reg_count", SIZE)():
            return
        folder = processor.library_folder()
        with log.collect_lines() as lines:
            ggml.function("ggml_backend_load_all_from_path", None, TEXT)(os.fsencode(folder))
        found = (re.search(r"loaded (\S+) backend from (.+)$", line) for line in lines)
        _loaded.update({match[1]: Path(match[2]) for match in found if match})
        if not ggml.function("ggml_backend_reg_by_name", POINTER, TEXT)(b"CPU"):
            raise WeblabError(
                _("No part of llama.cpp for this processor can be loaded from {folder}.").format(folder=folder),
                _("Install it again: make install PORTABLE=1."),
            )


def cpu_variant() -> str:
    """Return which of the CPU backends of a portable build was picked, like "haswell"; "" of a native build."""
    path = _loaded.get("CPU")
    return path.stem.partition("ggml-cpu-")[2] if path else ""


def system_info() -> str:
    """llama.cpp's line about what it was compiled for: backends, instructions of the processor.

    Raises what `start` raises.
    """
    from llama_cpp import llama_cpp

    start()
    text: bytes = llama_cpp.llama_print_system_info()
    return text.decode("utf-8", errors="replace").strip(" |")


def file_type_name(number: object) -> str:
    """llama.cpp's name for a GGUF's `general.file_type`, like "Q4_K_M"; "" for a number it does not have."""
    from llama_cpp import llama_cpp

    names = {
        getattr(llama_cpp, name): name.partition("_FTYPE_")[2].removeprefix("MOSTLY_").removeprefix("ALL_")
        for name in dir(llama_cpp)
        if name.startswith("LLAMA_FTYPE_")
    }
    return names.get(number, "")


def vocabulary_errors(path: Path) -> list[str] | None:
    """The error lines that llama.cpp logs when it cannot load the vocabulary of a GGUF, possibly none; else None."""
    from llama_cpp import llama_cpp

    start()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    with log.collect_errors() as errors:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        return errors
    llama_cpp.llama_model_free(model)
    return None
