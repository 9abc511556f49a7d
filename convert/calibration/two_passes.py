"""The full model and the rounded one side by side: layer by layer, each matrix is rounded when its inputs are known.

All texts stop before a matrix, in both models, until it is rounded; then the rounded model goes on with what it became.
So a layer is read once, and computed once in each model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from convert.calibration.moments import Moments
from convert.errors import CheckpointError
from convert.model.gpt_neox import Hyperparameters
from convert.reference.forward import MATRICES, Steps, layer_norm, layer_steps, rotary
from convert.reference.state import Finished, StateFile
from convert.reference.weights import Weights

Progress = Callable[[int, int], None]
"""Called with the weights that are done and those in all, as bytes of the checkpoint, two for each."""


class Rounder(Protocol):
    """What rounds, as `compensation.Compensation`."""

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""

    def embedding(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Round the embedding; its rows for these token ids."""

    def flush(self) -> None:
        """What was rounded until now is on the disk."""

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
    def run(self, ids: Sequence[NDArray[np.int64]], progress: Progress, state: StateFile) -> None:
        """Take these sequences of token ids through both models, by which all layers and the output are rounded.

        `state` is written after each layer; a run with the same key goes on where it ends.
        """
        hidden, n_layers = self._hparams.hidden_size, self._hparams.num_hidden_layers
        matrices = [f"blk.{number}.{name}.weight" for number in range(n_layers) for name in MATRICES]
        finished = state.load()
        if finished is None:
            first = 0
            left = ["token_embd.weight", *matrices, "output.weight"]
        else:
            first = finished.layers
            left = [*matrices[first * len(MATRICES) :], "output.weight"]
        done = self._counted(left, progress)
        if finished is None:
            joined = np.concatenate(ids)
            full = self._weights.gather("token_embd.weight", joined)
            rounded = self._rounder.embedding(joined).to(full.device)
            done()
        else:
            full, rounded = torch.from_numpy(finished.hidden).to(self._weights.device).chunk(2)
        ends = list(accumulate(map(len, ids)))
        texts = [_Text(full[start:end], rounded[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        del full, rounded
        for number in range(first, n_layers):
            self._layer(number, texts, done)
            self._rounder.flush()
            both = torch.cat([text.full for text in texts] + [text.rounded for text in texts])
            state.save(Finished(number + 1, both.cpu().numpy(), {}))
            del both
        if self._rounder.is_rounded("output.weight"):
            norm, bias = self._weights.read("output_norm.weight"), self._weights.read("output_norm.bias")
            moments = self._moments(hidden, centred=False)
            for text in texts:
                moments.add(*(layer_norm(found, norm, bias, self._hparams) for found in (text.rounded, text.full)))
            del texts
            self._rounder.output(moments)
        done()

    def _counted(self, names: Sequence[str], progress: Progress) -> Callable[[], None]:
        """What is called when each of these matrices is done, in their order."""
        sizes = [2 * prod(self._weights.shape(name)) for name in names]
        so_far = accumulate(sizes)
        return lambda: progress(next(so_far), sum(sizes))

    def _layer(self, number: int, texts: Sequence[_Text], done: Callable[[], None]) -> None:
        """Take the texts through a layer, in the place of their hidden states."""
        full = self._weights.layer(number, matrices=False)
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
            name = f"blk.{number}.{matrix}.weight"
            moments = self._moments(self._weights.shape(name)[1])
            for pair in steps:
                moments.add(*(next(model)[1] for model in pair))
            if used is not None:
                del full[f"{used}.weight"], rounded[f"{used}.weight"]
            used = matrix
            weight = self._weights.read(name)
            full[f"{matrix}.weight"] = rounded[f"{matrix}.weight"] = weight.to(self._rounder.dtype)
            if self._rounder.is_rounded(name):
                values, rounded[f"{matrix}.bias"] = self._rounder.layer_matrix(name, weight, moments)
                rounded[f"{matrix}.weight"] = values.to(self._rounder.dtype)
                del values
            del weight, moments
            done()
        for text, (in_rounded, in_full) in zip(texts, steps, strict=True):
            text.rounded, text.full = _result(in_rounded), _result(in_full)
            if not text.full.isfinite().all():
                raise CheckpointError(
                    f"The checkpoint computes NaN or infinite values in layer {number}.",
                    "The checkpoint is damaged, or its training diverged.",
                )

    def _moments(self, n_columns: int, centred: bool = True) -> Moments:
        return Moments(n_columns, centred, dtype=self._rounder.dtype, device=self._weights.device)


def _result(steps: Steps) -> torch.Tensor:
    """What a layer gives, once it has met its last matrix."""
    try:
        next(steps)
    except StopIteration as end:
        result: torch.Tensor = end.value
        return result
    raise AssertionError("a layer has more matrices than MATRICES names")
