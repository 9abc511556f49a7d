"""The reference's log-probabilities, computed once and kept on disk for any number of files to be compared with."""

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from convert.errors import OutputError
from convert.model.gpt_neox import hyperparameters
from convert.reference.reference import Progress, checked, logits
from convert.reference.state import identity
from convert.source.checkpoint import Checkpoint
from convert.source.tensor_files import read_safetensors
from weblab_local.files import written_whole
from weblab_local.sizes import byte_count

_LOG_SOFTMAX_TOKENS = 64


class LogProbabilities:
    """log_softmax of the logits after every token, in fp16, memory-mapped: a sequence of (n_tokens, n_vocab) arrays.

    fp16 has 11 bits: -10 is off by up to 0.004. Whoever compares distributions should normalize these again (subtract
    the logarithm of the sum of their exponentials): the error of a KL divergence is then quadratic in the rounding,
    less than 3e-6, instead of linear.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError where `path` is no whole file of `log_probabilities`."""
        tensors = read_safetensors(path)
        self._arrays: list[NDArray[np.float16]] = [tensors[str(number)].data for number in range(len(tensors))]

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self._arrays)

    def __iter__(self) -> Iterator[NDArray[np.float16]]:
        """The arrays of all sequences, in their order."""
        return iter(self._arrays)

    def __getitem__(self, index: int) -> NDArray[np.float16]:
        """(n_tokens, n_vocab) of sequence `index`: row i is of the token that follows the first i + 1."""
        return self._arrays[index]


def log_probabilities(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    path: Path,
    *,
    progress: Progress | None = None,
    device: str = "auto",
) -> LogProbabilities:
    """The log-probabilities of the `sequences`, computed once: `path` is opened when it holds those of this checkpoint.

    Otherwise it is made anew, and is complete or absent: a .safetensors file of 2 * n_vocab bytes per token. An
    interrupted run leaves `path` + ".state", and the next goes on there. Raises as `logits` does, and OutputError where
    the disk has no room.
    """
    hparams = hyperparameters(checkpoint.config)
    ids = checked(sequences, hparams)
    key = json.dumps(identity(checkpoint, ids))
    if _key(path) == key:
        return LogProbabilities(path)
    state = path.with_name(path.name + ".state")
    header = _header(key, [len(sequence) for sequence in ids], hparams.vocab_size)
    _check_room(path.parent, len(header) + 2 * sum(map(len, ids)) * hparams.vocab_size)
    try:
        with written_whole(path) as partial, partial.open("wb") as file:
            file.write(header)
            for found in logits(checkpoint, sequences, state=state, progress=progress, device=device):
                for start in range(0, len(found), _LOG_SOFTMAX_TOKENS):
                    rows = torch.from_numpy(found[start : start + _LOG_SOFTMAX_TOKENS])
                    file.write(rows.log_softmax(dim=1).half().numpy().data)
    except OSError as error:
        raise OutputError(
            f"The log-probabilities cannot be written to {path}: {error}.", "Choose another folder, or free some space."
        ) from error
    return LogProbabilities(path)


def _key(path: Path) -> str | None:
    """What the file at `path` was computed from; None where there is no whole file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("key")
    except (OSError, SafetensorError):
        return None


def _header(key: str, lengths: Sequence[int], n_vocab: int) -> bytes:
    """The beginning of a .safetensors file with a tensor for each sequence, named by its position."""
    ends = list(accumulate(2 * length * n_vocab for length in lengths))
    described: dict[str, Any] = {"__metadata__": {"key": key}}
    for number, (length, start, end) in enumerate(zip(lengths, [0, *ends], ends, strict=False)):
        described[str(number)] = {"dtype": "F16", "shape": [length, n_vocab], "data_offsets": [start, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OutputError(
            f"Not enough disk space in {folder}: {byte_count(size)} needed for log-probabilities, "
            f"{byte_count(free)} free.",
            "Free some space, choose another folder, or fewer texts.",
        )
