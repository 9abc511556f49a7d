"""What a matrix is rounded by: how its inputs move together, and what rounding before it has done to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from convert.quantization.block_types import SUPER_BLOCK

MAX_COLUMNS = 6144
"""Columns that are looked at together: H has their square of values, and is factored. Longer rows are cut evenly."""


@dataclass
class Part:
    """Some columns, and about a centre: X^T X, and X^T (Y - X), float32 (n, n)."""

    columns: slice
    product: torch.Tensor
    lack: torch.Tensor


class Moments:
    """Of the inputs X (n_tokens, n_columns) in the rounded model and Y in the full one, in parts along the diagonal.

    `centred`: of their deviations from their means. All is collected about the first inputs' mean, not about zero,
    since a large mean would leave little of float32's precision to them.
    """

    def __init__(self, n_columns: int, centred: bool = True, max_columns: int = MAX_COLUMNS) -> None:
        n_super_blocks = n_columns // SUPER_BLOCK
        n_parts = -(-n_columns // max_columns)
        cuts = [SUPER_BLOCK * (n_super_blocks * part // n_parts) for part in range(n_parts + 1)]
        self._parts = [
            Part(slice(start, stop), torch.zeros(stop - start, stop - start), torch.zeros(stop - start, stop - start))
            for start, stop in pairwise(cuts)
        ]
        self._centred = centred
        self._n_tokens = 0
        self._centre = torch.zeros(n_columns)
        self._sum = torch.zeros(n_columns, dtype=torch.float64)
        self._lack = torch.zeros(n_columns, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, full: torch.Tensor) -> None:
        """Count X and Y of some tokens in."""
        inputs, full = inputs.cpu(), full.cpu()
        if self._centred and not self._n_tokens:
            self._centre = inputs.mean(dim=0)
        self._n_tokens += len(inputs)
        self._sum += inputs.sum(dim=0, dtype=torch.float64)
        lacking = full - inputs
        self._lack += lacking.sum(dim=0, dtype=torch.float64)
        moved = inputs - self._centre
        for part in self._parts:
            here = moved[:, part.columns]
            part.product.addmm_(here.T, here)
            part.lack.addmm_(here.T, lacking[:, part.columns])

    @property
    def mean(self) -> torch.Tensor:
        """X's mean: float64 (n_columns,)."""
        return self._sum / self._n_tokens

    @property
    def mean_lack(self) -> torch.Tensor:
        """The mean of Y - X: float64 (n_columns,)."""
        return self._lack / self._n_tokens

    def parts(self) -> Iterator[Part]:
        """The parts in their order, about the mean where that was wanted. Once only: memory goes with each."""
        while self._parts:
            part = self._parts.pop(0)
            if self._centred:
                shift = (self.mean - self._centre)[part.columns]
                part.product.addr_((shift * self._n_tokens).float(), shift.float(), alpha=-1)
                part.lack.addr_((shift * self._n_tokens).float(), self.mean_lack[part.columns].float(), alpha=-1)
            yield part
