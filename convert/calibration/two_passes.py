"""The full model and the rounded one side by side: layer by layer, each matrix is rounded when its inputs are known.

All texts stop before a matrix, in both models, until it is rounded; then the rounded model goes on with what it became.
So a layer is read once, and computed once in each model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from convert.calibration.moments import Moments
from convert.errors import CheckpointError
from convert.model.gpt_neox import Hyperparameters
from convert.reference.forward import MATRICES, Steps, layer_norm, layer_steps, rotary
from convert.reference.weights import Weights

Progress = Callable[[int, int], None]
"""Called with the weights that are done and those in all, as bytes of the checkpoint, two for each."""


class Rounder(Protocol):
    """What rounds, as `compensation.Compensation`."""

    def embedding(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Round the embedding; its rows for these token ids."""

    def is_rounded(self, name: str) -> bool:
        """Whether that matrix is rounded; another stays as it is in the full model."""

    def layer_matrix(self, name: str, weight: torch.Tensor, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's matrix and its bias, rounded."""

    def output(self, moments: Moments) -> None:
        """The output matrix is rounded, too."""


@dataclass
class _Text:
    """One text's hidden states (n_tokens, hidden_size) in both models."""

    full: torch.Tensor
    rounded: torch.Tensor


class TwoPasses:
    """Takes texts through the full model and through the one that `rounder` makes of it."""

    def __init__(self, weights: Weights, hparams: Hyperparameters, rounder: Rounder) -> None:
        self._weights = weights
        self._hparams = hparams
        self._rounder = rounder

    @torch.inference_mode()
    def run(self, ids: Sequence[Sequence[int]], progress: Progress) -> None:
        """Take these sequences of token ids through both models, by which all layers and the output are rounded."""
        joined = np.concatenate([np.asarray(sequence, np.int64) for sequence in ids])
        ends = list(accumulate(len(sequence) for sequence in ids))
        full = self._weights.gather("token_embd.weight", joined)
        rounded = self._rounder.embedding(joined).to(full.device)
        texts = [_Text(full[start:end], rounded[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        n_layers, hidden = self._hparams.num_hidden_layers, self._hparams.hidden_size
        layer_size = 4 * hidden * hidden + 2 * hidden * self._hparams.intermediate_size
        total = n_layers * layer_size + self._hparams.vocab_size * hidden
        for number in range(n_layers):
            self._layer(number, texts)
            progress(2 * layer_size * (number + 1), 2 * total)
        if self._rounder.is_rounded("output.weight"):
            norm, bias = self._weights.read("output_norm.weight"), self._weights.read("output_norm.bias")
            moments = Moments(hidden, centred=False)
            for text in texts:
                moments.add(*(layer_norm(found, norm, bias, self._hparams) for found in (text.rounded, text.full)))
            del texts
            self._rounder.output(moments)
        progress(2 * total, 2 * total)

    def _layer(self, number: int, texts: Sequence[_Text]) -> None:
        """Take the texts through a layer, in the place of their hidden states."""
        full = self._weights.layer(number)
        rounded = dict(full)
        angles = rotary(self._hparams, max(len(text.full) for text in texts), texts[0].full.device)
        steps = [
            (
                layer_steps(text.rounded, rounded, self._hparams, angles),
                layer_steps(text.full, full, self._hparams, angles),
            )
            for text in texts
        ]
        used = None
        for matrix in MATRICES:
            weight = full[f"{matrix}.weight"]
            moments = Moments(weight.shape[1])
            for pair in steps:
                moments.add(*(next(model)[1] for model in pair))
            if used is not None:
                del full[f"{used}.weight"], rounded[f"{used}.weight"]
            used = matrix
            name = f"blk.{number}.{matrix}.weight"
            if self._rounder.is_rounded(name):
                changed = self._rounder.layer_matrix(name, weight, moments)
                rounded[f"{matrix}.weight"], rounded[f"{matrix}.bias"] = changed
        for text, (in_rounded, in_full) in zip(texts, steps, strict=True):
            text.rounded, text.full = _result(in_rounded), _result(in_full)
            if not text.full.isfinite().all():
                raise CheckpointError(
                    f"The checkpoint computes NaN or infinite values in layer {number}.",
                    "The checkpoint is damaged, or its training diverged.",
                )


def _result(steps: Steps) -> torch.Tensor:
    """What a layer gives, once it has met its last matrix."""
    try:
        next(steps)
    except StopIteration as end:
        result: torch.Tensor = end.value
        return result
    raise AssertionError("a layer has more matrices than MATRICES names")
