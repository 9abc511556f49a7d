"""Before a file gets its final name: llama.cpp's own reader finds what was planned, and accepts the vocabulary."""

import os
from pathlib import Path

import llama_cpp.llama_cpp as llama

from convert.errors import ConversionError
from convert.plan import PlannedOutput
from weblab_local.errors import ModelFileError
from weblab_local.gguf_header import TensorInfo, read_header
from weblab_local.llama_log import collect_errors


def check_written(planned: PlannedOutput, path: Path) -> None:
    """Raise ConversionError unless every tensor in the file at `path` lies where it was planned, with its type."""
    try:
        found = read_header(path).tensors
    except ModelFileError as error:
        raise _unreadable(path, error.message) from None
    meant = {
        name: TensorInfo(int(entry.ggml_type), planned.position(name), entry.nbytes)
        for name, entry in planned.tensors.items()
    }
    if found != meant or path.stat().st_size != planned.size:
        raise _unreadable(path)
    _check_vocabulary(path)


def _check_vocabulary(path: Path) -> None:
    params = llama.llama_model_default_params()
    params.vocab_only = True
    with collect_errors() as errors:
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        raise _unreadable(path, *errors)
    llama.llama_model_free(model)


def _unreadable(path: Path, *errors: str) -> ConversionError:
    return ConversionError(
        f"llama.cpp does not find in {path.name} what was written there. {' '.join(errors)}".rstrip(),
        "The disk may be failing. If it happens again, please report it with the checkpoint's name.",
    )
