"""What a matrix is rounded by: how its inputs move together, and what rounding before it has done to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from convert.calibration.products import product
from convert.quantization.block_types import SUPER_BLOCK

MAX_COLUMNS = 6144
"""Columns that are looked at together: H has their square of values, and is factored. Longer rows are cut evenly."""

_BAND = 1280
"""Rows of H that are computed at a time, from the diagonal on: what is left of it is the same."""

_TOKENS = 2048
"""Tokens whose products are added at a time: each time all of H is read and written."""


@dataclass
class Part:
    """Some columns, and about a centre: X^T X from its diagonal on, and X^T (Y - X), float32 (n, n)."""

    columns: slice
    product: torch.Tensor
    lack: torch.Tensor


class Moments:
    """Of the inputs X (n_tokens, n_columns) in the rounded model and Y in the full one, in parts along the diagonal.

    `centred`: of their deviations from their means. All is collected about the first inputs' mean, not about zero,
    since a large mean would leave little of float32's precision to them. `dtype` is what the lack is computed in; H is
    factored, which wants it in float32.
    """

    def __init__(
        self,
        n_columns: int,
        centred: bool = True,
        max_columns: int = MAX_COLUMNS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        n_super_blocks = n_columns // SUPER_BLOCK
        n_parts = -(-n_columns // max_columns)
        cuts = [SUPER_BLOCK * (n_super_blocks * part // n_parts) for part in range(n_parts + 1)]
        self._parts = [
            Part(slice(start, stop), *(torch.zeros(stop - start, stop - start, device=device) for _ in range(2)))
            for start, stop in pairwise(cuts)
        ]
        self._centred = centred
        self._dtype = dtype
        self._n_tokens = 0
        self._centre = torch.zeros(n_columns, device=device)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sum = torch.zeros(n_columns, dtype=torch.float64)
        self._lack = torch.zeros(n_columns, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, full: torch.Tensor) -> None:
        """Count X and Y of some tokens in."""
        if self._centred and not self._n_tokens:
            self._centre = inputs.mean(dim=0)
        self._n_tokens += len(inputs)
        self._sum += inputs.sum(dim=0).cpu()
        lacking = full - inputs
        self._lack += lacking.sum(dim=0).cpu()
        self._waiting.append((inputs - self._centre, lacking))
        if sum(len(moved) for moved, _ in self._waiting) >= _TOKENS:
            self._multiply()

    def _multiply(self) -> None:
        if not self._waiting:
            return
        moved, lacking = map(torch.cat, zip(*self._waiting, strict=True))
        self._waiting.clear()
        for part in self._parts:
            here = moved[:, part.columns]
            for start in range(0, here.shape[1], _BAND):
                band = slice(start, start + _BAND)
                part.product[band, start:].addmm_(here[:, band].T, here[:, start:])
            part.lack += product(here.T, lacking[:, part.columns], self._dtype)

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
        self._multiply()
        shift = (self.mean - self._centre.cpu()).float()
        weighted, lack = shift * self._n_tokens, self.mean_lack.float()
        while self._parts:
            part = self._parts.pop(0)
            if self._centred:
                here, device = part.columns, part.product.device
                part.product.addr_(weighted[here].to(device), shift[here].to(device), alpha=-1)
                part.lack.addr_(weighted[here].to(device), lack[here].to(device), alpha=-1)
            yield part
