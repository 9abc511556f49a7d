"""Before a file gets its final name: llama.cpp's own reader finds what was planned, and accepts the vocabulary."""

from pathlib import Path

from convert.errors import ConversionError
from convert.writing.plan import PlannedOutput
from weblab_local.errors import ModelFileError
from weblab_local.llama.backends import vocabulary_errors
from weblab_local.llama.gguf_header import TensorInfo, read_header


def check_written(planned: PlannedOutput, path: Path) -> None:
    """Raise ConversionError unless every tensor in the file at `path` lies where it was planned, with its type."""
    try:
        found = read_header(path).tensors
    except ModelFileError as error:
        raise _unreadable(path, error.message) from None
    meant = {
        name: TensorInfo(int(entry.ggml_type), planned.position(name), entry.nbytes, entry.shape[::-1])
        for name, entry in planned.tensors.items()
    }
    if found != meant or path.stat().st_size != planned.size:
        raise _unreadable(path)
    errors = vocabulary_errors(path)
    if errors is not None:
        raise _unreadable(path, *errors)


def _unreadable(path: Path, *errors: str) -> ConversionError:
    return ConversionError(
        f"llama.cpp does not find in {path.name} what was written there. {' '.join(errors)}".rstrip(),
        "The disk may be failing. If it happens again, please report it with the checkpoint's name.",
    )
