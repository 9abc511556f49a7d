"""Importance matrices of a checkpoint's activations.

    texts --tokenizer--> sequences --reference, layer by layer--> inputs of each weight --> sums of their squares

The weights are those that llama-imatrix collects by default: the matrices of the layers, neither embedding nor head.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convert.errors import ConversionError, ImatrixError, OutputError
from convert.model.gpt_neox import Hyperparameters, hyperparameters
from convert.progress import say, shown
from convert.quantization.imatrix import (
    COUNTS_SUFFIX,
    SUMS_SUFFIX,
    Activations,
    Calibration,
    ImatrixFile,
    ImportanceMatrix,
    open_imatrix,
    read_imatrix,
    write_imatrix,
)
from convert.reference.reference import Progress, checked, find_device, observe_layers
from convert.reference.state import identity
from convert.reference.texts import Language, Text, balanced, calibration, describe, read_texts, read_tokenizer
from convert.source.checkpoint import Checkpoint
from weblab_local.sizes import byte_count

MAX_TOKENS = 8000
"""Tokens to calibrate on, unless another number is given."""

N_CTX = 512
"""Length of a sequence, which is llama-imatrix's chunk."""

_ROWS = 64
_LANGUAGE_NAMES: Mapping[Language, str] = {"ja": "Japanese", "en": "English"}


class SumsOfSquares:
    """A ResumableObserver: for each weight the sums of its squared inputs, in float64, and the tokens they are of."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._n_tokens: dict[str, int] = {}

    def __call__(self, name: str, inputs: torch.Tensor) -> None:
        """Add `inputs` (n_tokens, n_columns), a few rows at a time so that their float64 takes little memory."""
        sums = self._sums.setdefault(name, np.zeros(inputs.shape[1]))
        for start in range(0, len(inputs), _ROWS):
            sums += inputs[start : start + _ROWS].cpu().double().square_().sum(dim=0).numpy()
        self._n_tokens[name] = self._n_tokens.get(name, 0) + len(inputs)

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """Sums and counts by the names they have in an importance matrix."""
        counts = {name + COUNTS_SUFFIX: np.array(count) for name, count in self._n_tokens.items()}
        return counts | {name + SUMS_SUFFIX: sums for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on with what `state_dict` gave."""
        names = [name.removesuffix(SUMS_SUFFIX) for name in state if name.endswith(SUMS_SUFFIX)]
        self._sums = {name: np.array(state[name + SUMS_SUFFIX], np.float64) for name in names}
        self._n_tokens = {name: int(state[name + COUNTS_SUFFIX]) for name in names}

    @property
    def activations(self) -> dict[str, Activations]:
        """What was collected, in float32 as llama-imatrix stores it."""
        return {name: Activations(sums.astype(np.float32), self._n_tokens[name]) for name, sums in self._sums.items()}


def calibrate(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    *,
    datasets: Sequence[str],
    n_ctx: int = N_CTX,
    state: Path | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> ImportanceMatrix:
    """The importance matrix of `sequences` of token ids, which are at most `n_ctx` long.

    `datasets` names what they were made of. `state`, `progress`, `device` and what is raised are those of
    `reference.logits`. Raises ImatrixError where there are no sequences.
    """
    sums = SumsOfSquares()
    observe_layers(checkpoint, sequences, sums, state=state, progress=progress, device=device)
    return ImportanceMatrix(sums.activations, datasets, sum(map(len, sequences)) // n_ctx, n_ctx)


@dataclass(frozen=True)
class CalibrationTexts:
    """What to calibrate on: at most `max_tokens` of these texts, which together are called `name`."""

    name: str
    texts: Sequence[Text]
    max_tokens: int = MAX_TOKENS

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it; known before anything is calibrated."""
        return {"calibration": {"texts_sha256": self.sha256, "max_tokens": self.max_tokens, "n_ctx": N_CTX}}

    @property
    def sha256(self) -> str:
        """Over all texts, as `texts.describe` has it."""
        return str(describe(self.texts, [])["sha256"])


def calibration_texts(path: Path | None = None, max_tokens: int = MAX_TOKENS) -> CalibrationTexts:
    """The texts in the file at `path`, by default those of this project. Raises TextsError."""
    if path is None:
        return CalibrationTexts("weblab-local-calibration", calibration(), max_tokens)
    return CalibrationTexts(path.name, read_texts(path), max_tokens)


def calibrated(checkpoint: Checkpoint, texts: CalibrationTexts, path: Path, force: bool = False) -> ImatrixFile:
    """The importance matrix at `path`, made of the checkpoint and `texts` now unless it was before.

    Says what it costs before it begins. An interrupted run leaves `path` + ".state", and the next goes on there.
    Raises OutputError where something is at `path` that was not made by calibrating, unless `force` is given.
    """
    hparams = hyperparameters(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.tokenizer_folder)
    n_ctx = min(N_CTX, hparams.max_position_embeddings)
    chosen = balanced(texts.texts, tokenizer, hparams.eos_token_id, n_ctx, texts.max_tokens)
    sequences = [ids for _, ids in chosen]
    if not sequences:
        raise ConversionError("There is not enough text to calibrate on: it takes two tokens.", "Give a longer text.")
    key = hashlib.sha256(json.dumps(identity(checkpoint, checked(sequences, hparams))).encode()).hexdigest()
    n_tokens = sum(map(len, sequences))
    shares: dict[str, float] = {
        language: round(sum(len(ids) for of, ids in chosen if of == language) / n_tokens, 4)
        for language in _LANGUAGE_NAMES
    }
    found = Calibration(key, texts.sha256, n_tokens, shares)
    if _is_made_of(path, found, force):
        say(f"{path} was made of this checkpoint and these texts.")
        return open_imatrix(path)
    device = find_device("auto")
    _announce(found, hparams, len(sequences), _seconds(hparams, n_tokens, n_ctx, device))
    state = path.with_name(path.name + ".state")
    if state.exists():
        say(f"Going on with {state}, if it is of the same.")
    with shown("calibrating") as progress:
        matrix = calibrate(
            checkpoint,
            sequences,
            datasets=[texts.name],
            n_ctx=n_ctx,
            state=state,
            progress=progress,
            device=device.type,
        )
    write_imatrix(path, ImportanceMatrix(matrix.entries, matrix.datasets, matrix.chunk_count, matrix.chunk_size, found))
    return open_imatrix(path)


def _is_made_of(path: Path, wanted: Calibration, force: bool) -> bool:
    """Whether the matrix is there. Raises OutputError when something is there that is not ours to replace."""
    if not path.exists():
        return False
    try:
        calibration = read_imatrix(path).calibration
    except ImatrixError:
        calibration = None
    if calibration is None and not force:
        raise OutputError(
            f"{path} exists already, and was not made by calibrating.",
            "Give it to --imatrix if it is the matrix to use; else move it, or give --force to replace it.",
        )
    return calibration == wanted


def _announce(calibration: Calibration, hparams: Hyperparameters, n_sequences: int, seconds: float) -> None:
    languages = " and ".join(f"{share:.0%} {_LANGUAGE_NAMES[of]}" for of, share in _named(calibration.shares) if share)
    sequences = f"{n_sequences} sequence{'s' if n_sequences > 1 else ''}"
    say(
        f"calibrating on {calibration.n_tokens} tokens in {sequences}, {languages}: {_duration(seconds)} of computing "
        f"at this machine's speed, and {byte_count(2 * _n_weights(hparams))} of weights to read"
    )


def _named(shares: Mapping[str, float]) -> list[tuple[Language, float]]:
    return [(language, shares[language]) for language in _LANGUAGE_NAMES]


def _n_weights(hparams: Hyperparameters) -> int:
    """Weights of the layers' matrices."""
    hidden, feed_forward = hparams.hidden_size, hparams.intermediate_size
    return hparams.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * feed_forward)


def _seconds(hparams: Hyperparameters, n_tokens: int, n_ctx: int, device: torch.device) -> float:
    """Seconds that the matrix products of the layers take, from the fastest of three of them."""
    inputs = torch.ones(min(n_ctx, n_tokens), hparams.hidden_size, device=device)
    weights = torch.ones(hparams.hidden_size, hparams.hidden_size, device=device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        (inputs @ weights).sum().item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times) * n_tokens / len(inputs) * _n_weights(hparams) / weights.numel()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} minutes"
