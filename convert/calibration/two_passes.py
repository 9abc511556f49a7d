"""The full model and the rounded one side by side: layer by layer, each matrix is rounded when its inputs are known.

All texts stop before a matrix, in both models, until it is rounded; then the rounded model goes on with what it became.
So a layer is read once, and computed once in each model.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from convert.calibration.moments import Inputs, Moments, follows
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
        """A layer's matrix, in `dtype`, and its bias, rounded."""

    def output(self, moments: Moments) -> None:
        """The output matrix is rounded, too."""


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
        n_layers = self._hparams.num_hidden_layers
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
        texts = [
            (rounded[start:end].clone(), full[start:end].clone()) for start, end in zip([0, *ends], ends, strict=False)
        ]
        del full, rounded
        for number in range(first, n_layers):
            self._layer(number, texts, done)
            self._rounder.flush()
            both = torch.cat([full for _, full in texts] + [rounded for rounded, _ in texts])
            state.save(Finished(number + 1, both.cpu().numpy(), {}))
            del both
            _give_back_memory()
        if self._rounder.is_rounded("output.weight"):
            norm, bias = self._weights.read("output_norm.weight"), self._weights.read("output_norm.bias")
            n_tokens = sum(len(rounded) for rounded, _ in texts)
            moments = Moments(
                [
                    (layer_norm(rounded, norm, bias, self._hparams), layer_norm(full, norm, bias, self._hparams))
                    for rounded, full in texts
                ],
                centred=False,
                follow=follows("output.weight", n_tokens, len(norm)),
                dtype=self._rounder.dtype,
            )
            del texts
            self._rounder.output(moments)
        done()

    def _counted(self, names: Sequence[str], progress: Progress) -> Callable[[], None]:
        """What is called when each of these matrices is done, in their order."""
        sizes = [2 * prod(self._weights.shape(name)) for name in names]
        so_far = accumulate(sizes)
        return lambda: progress(next(so_far), sum(sizes))

    def _layer(self, number: int, texts: list[Inputs], done: Callable[[], None]) -> None:
        """Take the texts' hidden states through a layer: (n_tokens, hidden_size) in both models."""
        full = self._weights.layer(number, matrices=False)
        rounded = dict(full)
        angles = rotary(self._hparams, max(len(hidden) for hidden, _ in texts), self._weights.device)
        steps = [
            (
                layer_steps(in_rounded, rounded, self._hparams, angles),
                layer_steps(in_full, full, self._hparams, angles),
            )
            for in_rounded, in_full in texts
        ]
        texts.clear()
        used = None
        for matrix in MATRICES:
            name = f"blk.{number}.{matrix}.weight"
            inputs = [(next(in_rounded)[1], next(in_full)[1]) for in_rounded, in_full in steps]
            if used is not None:
                del full[f"{used}.weight"], rounded[f"{used}.weight"]
            used = matrix
            weight = self._weights.read(name)
            full[f"{matrix}.weight"] = rounded[f"{matrix}.weight"] = weight.to(self._rounder.dtype)
            if self._rounder.is_rounded(name):
                follow = follows(name, sum(len(found) for found, _ in inputs), weight.shape[1])
                moments = Moments(inputs, follow=follow, dtype=self._rounder.dtype)
                found = self._rounder.layer_matrix(name, weight, moments)
                rounded[f"{matrix}.weight"], rounded[f"{matrix}.bias"] = found
                del found, moments
            del weight, inputs
            done()
        for in_rounded, in_full in steps:
            texts.append((_result(in_rounded), _result(in_full)))
            if not texts[-1][1].isfinite().all():
                raise CheckpointError(
                    f"The checkpoint computes NaN or infinite values in layer {number}.",
                    "The checkpoint is damaged, or its training diverged.",
                )


def _give_back_memory() -> None:
    """Return what is free to the system. glibc keeps it in pieces, 0.2 GB more with each layer of the 10B."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _result(steps: Steps) -> torch.Tensor:
    """What a layer gives, once it has met its last matrix."""
    try:
        next(steps)
    except StopIteration as end:
        result: torch.Tensor = end.value
        return result
    raise AssertionError("a layer has more matrices than MATRICES names")
