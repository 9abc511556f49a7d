"""Blocks by whichever implementation: the bytes of llama.cpp's own `ggml_quantize_chunk`, whatever the weights."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf import dequantize
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.quantization import kernels, quantize
from convert.quantization.block_types import TYPES
from convert.quantization.quantize import kernel_for, quantize_in_c, quantize_rows

Floats = NDArray[np.float32]
Make = Callable[[np.random.Generator, tuple[int, int]], Floats]

KINDS = pytest.mark.parametrize("ggml_type", list(TYPES), ids=lambda t: t.name)


@pytest.fixture(autouse=True)
def _kernels_are_used() -> None:
    """Only other processors may have a llama.cpp that was compiled with fused multiply-add, with bytes of its own."""
    if not all(kernel_for(ggml_type) for ggml_type in TYPES) and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the kernels are not used with this llama.cpp")


@KINDS
def test_the_kernels_are_used(ggml_type: T) -> None:
    assert kernel_for(ggml_type) is kernels.quantize


def gaussian(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return random.standard_normal(shape, np.float32) * np.float32(0.02)


def outliers(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return random.standard_t(1.5, shape).astype(np.float32)


def heavy_outliers(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return gaussian(random, shape) * np.where(random.random(shape) < 0.01, np.float32(1000), np.float32(1))


def fp16_rounded(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return gaussian(random, shape).astype(np.float16).astype(np.float32)


def bf16_rounded(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (gaussian(random, shape).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def zero_blocks(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    keep = random.random((shape[0], shape[1] // 16)) < 0.5
    return gaussian(random, shape) * keep.repeat(16, axis=1)


def zeros(_: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.zeros(shape, np.float32)


def constant_blocks(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return gaussian(random, (shape[0], shape[1] // 32)).repeat(32, axis=1)


def nearly_constant(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.float32(-5) + gaussian(random, shape) * np.float32(1e-5)


def denormals(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (random.integers(-2000, 2000, shape) * 1e-45).astype(np.float32)


def tiny(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return gaussian(random, shape) * np.float32(1e-13)


def huge(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return gaussian(random, shape) * np.float32(1e38)


def largest(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.where(random.random(shape) < 0.5, np.float32(3.4e38), np.float32(-3.4e38))


def mixed_scales(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    scales = np.exp2(random.integers(-30, 12, (shape[0], shape[1] // 16))).astype(np.float32)
    return gaussian(random, shape) * scales.repeat(16, axis=1)


def few_values(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (random.integers(-2, 3, shape) / 8).astype(np.float32)


def positive(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.abs(gaussian(random, shape))


WEIGHTS: tuple[Make, ...] = (
    gaussian,
    outliers,
    heavy_outliers,
    fp16_rounded,
    bf16_rounded,
    zero_blocks,
    zeros,
    constant_blocks,
    nearly_constant,
    denormals,
    tiny,
    huge,
    largest,
    mixed_scales,
    few_values,
    positive,
)
IMPORTANCE: tuple[Make | None, ...] = (
    None,
    lambda random, shape: np.square(random.standard_normal(shape, np.float32)),
    lambda random, shape: np.exp(4 * random.standard_normal(shape, np.float32)),
    lambda random, shape: (random.random(shape) < 0.5).astype(np.float32),
    lambda _, shape: np.zeros(shape, np.float32),
)


@KINDS
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    make=st.sampled_from(WEIGHTS),
    make_importance=st.sampled_from(IMPORTANCE),
    n_rows=st.integers(1, 9),
    n_super_blocks=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@example(gaussian, None, 1, 1, 0)
@example(gaussian, None, 9, 5, 0)
@example(mixed_scales, IMPORTANCE[1], 5, 3, 1)
def test_the_bytes_are_those_of_llama_cpp(
    ggml_type: T, make: Make, make_importance: Make | None, n_rows: int, n_super_blocks: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows = make(random, (n_rows, 256 * n_super_blocks))
    importance = make_importance(random, (1, rows.shape[1]))[0] if make_importance else None
    expected = quantize_in_c(rows, ggml_type, importance)
    try:
        made = quantize_rows(rows, ggml_type, importance)
    except CheckpointError:
        assert np.abs(rows).max() > 1e4
        return
    assert np.array_equal(made, expected)


@KINDS
@pytest.mark.parametrize("importance", [None, IMPORTANCE[1]], ids=["plain", "weighted"])
@pytest.mark.parametrize("make", [gaussian, outliers, fp16_rounded, bf16_rounded], ids=lambda make: make.__name__)
def test_hardly_anything_is_left_to_c(ggml_type: T, make: Make, importance: Make | None) -> None:
    random = np.random.default_rng(3)
    rows = make(random, (200, 4864))
    weights = importance(random, (1, 4864))[0] if importance else None
    blocks, doubtful = kernels.quantize(rows, ggml_type, weights)
    assert len(doubtful) < len(blocks) / 50
    expected = quantize_in_c(rows, ggml_type, weights).reshape(blocks.shape)
    sure = np.delete(np.arange(len(blocks)), doubtful)
    assert np.array_equal(blocks[sure], expected[sure])


@KINDS
def test_blocks_decode_to_what_was_quantized(ggml_type: T) -> None:
    rows = gaussian(np.random.default_rng(4), (8, 1024))
    error = dequantize(quantize_rows(rows, ggml_type), ggml_type) - rows
    bound = {T.Q4_K: 0.1, T.Q5_K: 0.05, T.Q6_K: 0.025}[ggml_type]
    assert np.sqrt(np.square(error).mean()) < bound * rows.std()


@pytest.mark.parametrize("ggml_type", [T.Q8_0, T.Q4_0, T.IQ4_XS, T.Q3_K], ids=lambda t: t.name)
def test_other_types_are_left_to_c(ggml_type: T, caplog: pytest.LogCaptureFixture) -> None:
    kernel_for.cache_clear()
    with caplog.at_level(logging.INFO, "convert.quantization.quantize"):
        rows = gaussian(np.random.default_rng(5), (3, 512))
        assert np.array_equal(quantize_rows(rows, ggml_type), quantize_in_c(rows, ggml_type))
    assert f"{ggml_type.name}: llama.cpp's C code" in caplog.text


def test_a_result_that_is_not_finite_is_refused() -> None:
    with pytest.raises(CheckpointError, match="too large for Q4_K"):
        quantize_rows(np.full((2, 256), 1e8, np.float32), T.Q4_K)


def test_kernels_that_round_differently_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fused(rows: Floats, ggml_type: T, importance: Floats | None) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        blocks, doubtful = real(rows, ggml_type, importance)
        blocks[-1, -1] ^= 1
        return blocks, doubtful

    real = kernels.quantize
    monkeypatch.setattr(kernels, "quantize", fused)
    quantize.kernel_for.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "convert.quantization.quantize"):
            rows = gaussian(np.random.default_rng(6), (2, 512))
            assert np.array_equal(quantize_rows(rows, T.Q4_K), quantize_in_c(rows, T.Q4_K))
        assert "Q4_K: llama.cpp's C code, which rounds differently here" in caplog.text
    finally:
        quantize.kernel_for.cache_clear()


PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("numba").setLevel(logging.ERROR)
import numpy as np
from gguf import GGMLQuantizationType as T
from convert.quantization.quantize import prepare, quantize_in_c, quantize_rows
prepare([T.Q6_K, T.Q8_0], lambda line: print("said:", line))
rows = np.random.default_rng(0).standard_normal((2, 512), np.float32)
print(np.array_equal(quantize_rows(rows, T.Q6_K), quantize_in_c(rows, T.Q6_K)))
"""


def run(before: str = "", **environment: str) -> str:
    command = [sys.executable, "-c", before + PROGRAM]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_numba_c_does_it() -> None:
    out = run("import sys; sys.modules['numba'] = None\n")
    assert "Q6_K: llama.cpp's C code, the kernels do not work here" in out
    assert "said:" not in out
    assert out.endswith("True\n")


def test_compiling_is_announced_once_per_machine(tmp_path: Path) -> None:
    first = run(NUMBA_CACHE_DIR=str(tmp_path))
    assert "said: Compiling the quantization kernels for this processor" in first
    again = run(NUMBA_CACHE_DIR=str(tmp_path))
    assert "said:" not in again
    assert "Q6_K: vectorised kernels" in again
    assert again.endswith("True\n")


def test_without_a_place_for_a_cache_the_kernels_work_all_the_same() -> None:
    out = run(NUMBA_CACHE_DIR="/dev/null/nowhere")
    assert out.endswith("True\n")
