"""What a LoRA adds to a base model's tensors, some rows at a time.

The products are summed in the order of the rank, in float32 and without fused operations: the same adapter gives
the same bytes on every machine, however the rows are cut; by a kernel where Numba works, else by NumPy. A BLAS would
sum in an order of its own, and its threads are in the way of those that quantize.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.source.tensor_files import Rows, StoredTensor

Floats = NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRank:
    """`scaling` * B @ A: what is added to a matrix. `a`: (rank, columns), `b`: (rows, rank)."""

    a: StoredTensor
    b: StoredTensor
    scaling: float

    def __call__(self, rows: Rows) -> Floats:
        """These rows, (n, columns)."""
        return scaled_product(self.b.read(rows), self.a.read(), self.scaling)


@dataclass(frozen=True)
class LowRankEmbedding:
    """The transpose of `scaling` * B @ A, added to an embedding. `a`: (rank, rows), `b`: (columns, rank)."""

    a: StoredTensor
    b: StoredTensor
    scaling: float

    def __call__(self, rows: Rows) -> Floats:
        """These rows, (n, columns)."""
        some = self.a.to_float32(np.asarray(self.a.data[:, rows]))
        return scaled_product(some.T, self.b.read().T, self.scaling)


@dataclass(frozen=True)
class ScaledBias:
    """What the bias of B adds to the module's own."""

    bias: StoredTensor
    scaling: float

    def __call__(self, rows: Rows) -> Floats:
        """These values."""
        return self.bias.read(rows) * np.float32(self.scaling)


def scaled_product(b: Floats, a: Floats, scaling: float) -> Floats:
    """`scaling` * b @ a, (rows, columns), of (rows, rank) and (rank, columns): the sum first, then the scaling."""
    b, a = np.ascontiguousarray(b), np.ascontiguousarray(a)
    total = np.zeros((len(b), a.shape[1]), np.float32)
    kernel = _kernel()
    if kernel is None:
        _by_numpy(b, a, np.float32(scaling), total)
    else:
        kernel(b, a, np.float32(scaling), total)
    return total


_Kernel = Callable[[Floats, Floats, np.float32, Floats], None]


@cache
def _kernel() -> _Kernel | None:
    """Return `_by_rows`, compiled for this processor; the result is kept on disk and runs without the GIL."""
    try:
        import numba

        kernel: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(_by_rows)
        one = np.ones((1, 1), np.float32)
        kernel(one, one, np.float32(1), one.copy())
    except Exception as error:  # whatever keeps Numba from working on this machine, NumPy does the same
        _log.info("adapters: NumPy, the kernel does not work here: %s", error)
        return None
    return kernel  # type: ignore[no-any-return]  # it is called like the function


def _by_rows(b: Floats, a: Floats, scaling: np.float32, total: Floats) -> None:
    """Add b @ a to `total`, a row at a time, and scale it."""
    for row in range(len(b)):
        sums = total[row]
        for k in range(b.shape[1]):
            factor, values = b[row, k], a[k]
            for column in range(len(sums)):
                sums[column] += factor * values[column]
        for column in range(len(sums)):
            sums[column] *= scaling


def _by_numpy(b: Floats, a: Floats, scaling: np.float32, total: Floats) -> None:
    """As `_by_rows`, with the same bits."""
    for k in range(b.shape[1]):
        total += b[:, k : k + 1] * a[k]
    total *= scaling
