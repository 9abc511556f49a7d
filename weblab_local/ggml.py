"""ggml's C functions, through the handle that llama.cpp itself is linked to.

A wheel of llama-cpp-python holds several copies of libggml; opening one of them with ctypes again gives a second,
separate registry of devices and types. On Linux and macOS a look-up through libllama's handle goes on into the
libraries it depends on; on Windows the DLL beside it is the one already loaded.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _library(base_name: str) -> ctypes.CDLL:
    from llama_cpp import llama_cpp

    if sys.platform == "win32":
        return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / f"{base_name}.dll"))
    library: ctypes.CDLL = llama_cpp._lib
    return library


@cache
def function(name: str, restype: Any, argtypes: Sequence[Any], library: str = "ggml-base") -> Callable[..., Any]:
    """The C function `name` with its types declared. Calls release the GIL. AttributeError where there is none."""
    symbol = _library(library)[name]
    symbol.restype = restype
    symbol.argtypes = list(argtypes)
    return symbol
