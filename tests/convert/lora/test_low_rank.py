"""What an adapter adds has the same bits with Numba and without, however the rows are cut, and is the product."""

import numpy as np
import pytest

from convert.source import low_rank
from convert.source.low_rank import LowRank, LowRankEmbedding, scaled_product
from convert.source.tensor_files import StoredTensor


def random(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def test_numpy_gives_the_kernels_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert low_rank._kernel() is not None
    b, a = random(37, 24), random(24, 515)
    compiled = scaled_product(b, a, 1 / 3)
    monkeypatch.setattr(low_rank, "_kernel", lambda: None)
    np.testing.assert_array_equal(scaled_product(b, a, 1 / 3), compiled)
    np.testing.assert_allclose(compiled, (b.astype(np.float64) @ a) / 3, atol=1e-5)


def test_the_rows_may_be_cut_anyhow() -> None:
    a, b = StoredTensor("F32", random(8, 65)), StoredTensor("F32", random(40, 8))
    for added in (LowRank(a, b, 0.7), LowRankEmbedding(b=StoredTensor("F32", random(65, 8)), a=b_of(b), scaling=0.7)):
        whole = added(slice(None))
        assert whole.shape == (40, 65)
        np.testing.assert_array_equal(np.concatenate([added(slice(0, 1)), added(slice(1, 40))]), whole)
        order = np.arange(40)[::-1].copy()
        np.testing.assert_array_equal(added(order), whole[::-1])


def b_of(stored: StoredTensor) -> StoredTensor:
    return StoredTensor("F32", np.ascontiguousarray(stored.data.T))
