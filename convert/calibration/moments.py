"""What a matrix is rounded by: how its inputs move together, and what rounding before it has done to them."""

from collections.abc import Iterator, Sequence
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
"""Tokens whose products are added at a time, of whole texts: each time all of H is read and written."""

ENOUGH_TOKENS = 3
"""For each column that is looked at together, to make up for the lack of any matrix."""

_ALWAYS = ("attn_qkv", "output")
"""What makes up for it with fewer tokens, too: the others would gain less than it costs. See `docs/figures.md`."""

Inputs = tuple[torch.Tensor, torch.Tensor]
"""A text's inputs X (n_tokens, n_columns) in the rounded model, and Y in the full one."""


@dataclass
class Part:
    """Some columns, and about a centre: X^T X from its diagonal on, and X^T (Y - X), float32 (n, n)."""

    columns: slice
    product: torch.Tensor
    lack: torch.Tensor | None
    """None where it is not made up for."""
    mean: torch.Tensor
    """X's mean in these columns: float32 (n,), in the processor's memory."""
    n_rows: int
    """X's."""


def column_parts(n_columns: int, max_columns: int = MAX_COLUMNS) -> Iterator[slice]:
    """The columns that are looked at together: whole super-blocks."""
    n_super_blocks = n_columns // SUPER_BLOCK
    n_parts = -(-n_columns // max_columns)
    cuts = [SUPER_BLOCK * (n_super_blocks * part // n_parts) for part in range(n_parts + 1)]
    return (slice(start, stop) for start, stop in pairwise(cuts))


def follows(name: str, n_tokens: int, n_columns: int) -> bool:
    """Whether the weight of that name makes up for what was rounded before it."""
    together = max(part.stop - part.start for part in column_parts(n_columns))
    return name.split(".")[-2] in _ALWAYS or n_tokens >= ENOUGH_TOKENS * together


class Moments:
    """Of some texts' inputs, in parts along the diagonal, each computed when it is asked for.

    `centred`: of their deviations from their means. `dtype` is what the lack is computed in; H is factored, which wants
    it in float32. `follow`: the lack is computed, too.
    """

    def __init__(
        self,
        texts: Sequence[Inputs],
        *,
        centred: bool = True,
        follow: bool = True,
        max_columns: int = MAX_COLUMNS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._texts = texts
        self._follow = follow
        self._max_columns = max_columns
        self._dtype = dtype
        self._n_tokens = n_tokens = sum(len(inputs) for inputs, _ in texts)
        self.mean = torch.stack([_sum(inputs) for inputs, _ in texts]).sum(dim=0) / n_tokens
        """X's mean: float64 (n_columns,), in the processor's memory."""
        self.mean_lack = torch.stack([_sum(full.float() - inputs) for inputs, full in texts]).sum(dim=0) / n_tokens
        """The mean of Y - X, likewise."""
        self._device = texts[0][0].device
        self._centre = (self.mean if centred else torch.zeros_like(self.mean)).float().to(self._device)

    def parts(self) -> Iterator[Part]:
        """The parts in their order."""
        return (self._part(columns) for columns in column_parts(len(self.mean), self._max_columns))

    def _part(self, columns: slice) -> Part:
        size = columns.stop - columns.start
        zeros = torch.zeros(size, size, device=self._device)
        lack = torch.zeros_like(zeros) if self._follow else None
        found = Part(columns, zeros, lack, self.mean[columns].float(), self._n_tokens)
        waiting: list[Inputs] = []
        for inputs, full in self._texts:
            waiting.append((inputs[:, columns], full[:, columns]))
            if sum(len(some) for some, _ in waiting) >= _TOKENS:
                self._add(found, waiting)
        self._add(found, waiting)
        return found

    def _add(self, part: Part, waiting: list[Inputs]) -> None:
        """Add the products of what is waiting, of which nothing is left."""
        if not waiting:
            return
        moved = torch.cat([inputs for inputs, _ in waiting]).float().sub_(self._centre[part.columns])
        for start in range(0, moved.shape[1], _BAND):
            band = slice(start, start + _BAND)
            part.product[band, start:].addmm_(moved[:, band].T, moved[:, start:])
        if part.lack is not None:
            lacking = torch.cat([full.float() - inputs for inputs, full in waiting])
            part.lack += product(moved.to(self._dtype).T.contiguous(), lacking, self._dtype)
        waiting.clear()


def _sum(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.float().sum(dim=0).cpu().double()  # not every device has float64
