"""ggml's C functions, through the handle that llama.cpp itself is linked to.

A wheel of llama-cpp-python holds several copies of libggml; opening one of them with ctypes again gives a second,
separate registry of devices and types. On Linux and macOS a look-up through libllama's handle goes on into the
libraries it depends on; on Windows the DLL beside it is the one already loaded.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

POINTER, TEXT, SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t

GGML_TYPE_I8 = 24
"""Of `enum ggml_type`."""

_REGISTRY = (
    "ggml_backend_dev_count",
    "ggml_backend_dev_get",
    "ggml_backend_load_all_from_path",
    "ggml_backend_reg_by_name",
    "ggml_backend_reg_count",
    "ggml_backend_reg_get",
    "ggml_backend_register",
)
"""What is in the library `ggml`, which knows the backends; all else that is used here is in `ggml-base`."""


@cache
def _library(base_name: str) -> ctypes.CDLL:
    from llama_cpp import llama_cpp

    if sys.platform == "win32":
        folder = Path(llama_cpp.__file__).parent / "lib"
        names = (f"{base_name}.dll", f"lib{base_name}.dll")  # as Visual Studio and as MinGW call it
        return ctypes.CDLL(str(next(folder / name for name in names if (folder / name).is_file())))
    library: ctypes.CDLL = llama_cpp._lib
    return library


@cache
def function(name: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    """The C function `name` with its types declared. Calls release the GIL. AttributeError where there is none."""
    symbol = _library("ggml" if name in _REGISTRY else "ggml-base")[name]
    symbol.restype = restype
    symbol.argtypes = argtypes
    return symbol


def backend_function(registry: int, name: str, restype: Any, *argtypes: Any) -> Callable[..., Any] | None:
    """The function that a backend offers by name beside ggml's own (`ggml_backend_reg_get_proc_address`), or None.

    `registry` is a `ggml_backend_reg_t`.
    """
    look_up = function("ggml_backend_reg_get_proc_address", POINTER, POINTER, TEXT)
    address = look_up(registry, name.encode())
    return ctypes.CFUNCTYPE(restype, *argtypes)(address) if address else None
