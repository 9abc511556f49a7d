"""A GGUF is compared with its checkpoint without running it: sound files pass, and what is spoiled is named."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, quants

from convert.quantization.dequantize import block_size, dequantize_rows
from convert.quantization.mixtures import MIXTURES
from convert.quantization.quantize import quantize_rows
from convert.source.checkpoint import open_checkpoint
from convert.verification.file_check import FileCheck, check_files
from convert.verification.tensor_check import PRECISION
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted
from tests.support.spoiling import set_scalar, spoiled, swap_strings, tensor_rows
from weblab_local.llama.gguf_header import read_header

QUANTIZED = [ggml_type for ggml_type in PRECISION if block_size(ggml_type) > 1]


def check(checkpoint: Path, *paths: Path) -> list[FileCheck]:
    return check_files(open_checkpoint(checkpoint), paths, 2)


def only_finding(checkpoint: Path, path: Path) -> str:
    (result,) = check(checkpoint, path)
    assert not result.passed
    (finding,) = result.findings
    return finding


def random_rows(seed: int, shape: tuple[int, int] = (64, 1024)) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.02)


@pytest.mark.parametrize("ggml_type", PRECISION, ids=lambda t: t.name)
def test_dequantized_rows_are_those_of_ggufs_own_code(ggml_type: T) -> None:
    blocks = random_rows(0).view(np.uint8) if ggml_type == T.F32 else quantize_rows(random_rows(0), ggml_type)
    expected = quants.dequantize(blocks, ggml_type)
    np.testing.assert_allclose(dequantize_rows(blocks, ggml_type), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ggml_type", QUANTIZED, ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["gaussian", "heavy tails", "columns of all sizes", "importance matrix"])
def test_limits_hold_for_weights_of_every_kind(ggml_type: T, kind: str) -> None:
    rng = np.random.default_rng(1)
    rows = random_rows(2)
    importance = None
    if kind == "heavy tails":
        rows = (rng.standard_t(3, rows.shape) * 0.02).astype(np.float32)
    if kind == "columns of all sizes":
        rows = rows * np.exp(rng.standard_normal(1024)).astype(np.float32)
    if kind == "importance matrix":
        importance = np.exp(2 * rng.standard_normal(1024)).astype(np.float32)
    error = quants.dequantize(quantize_rows(rows, ggml_type, importance), ggml_type) - rows
    limit = PRECISION[ggml_type]
    assert np.linalg.norm(error) < limit.tensor * np.linalg.norm(rows)
    blocks = (error.reshape(-1, block_size(ggml_type)), rows.reshape(-1, block_size(ggml_type)))
    of_error, of_rows = (np.linalg.norm(part, axis=1) for part in blocks)
    assert (of_error < limit.block * of_rows).all()


def test_every_mixture_of_the_demo_is_what_its_checkpoint_holds(
    demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]
) -> None:
    results = check(demo_checkpoint, *demo_mixtures.values())
    for name, result in zip(demo_mixtures, results, strict=True):
        assert list(result.findings) == [], name
        assert result.mixture == name
        assert result.size == demo_mixtures[name].stat().st_size
        tensors = read_header(demo_mixtures[name]).tensors.values()
        assert {t.ggml_type for t in result.types} == {T(tensor.ggml_type).name for tensor in tensors}
        assert sum(t.n_tensors for t in result.types) == len(tensors)


def test_the_error_that_is_shown_is_that_of_the_weights(
    demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]
) -> None:
    (result,) = check(demo_checkpoint, demo_mixtures["Q4_0"])
    full = {tensor.name: tensor.data for tensor in GGUFReader(demo_mixtures["F32"]).tensors}
    errors = {}
    for tensor in GGUFReader(demo_mixtures["Q4_0"]).tensors:
        if tensor.tensor_type == T.Q4_0:
            found = quants.dequantize(tensor.data, T.Q4_0)
            errors[tensor.name] = np.linalg.norm(found - full[tensor.name]) / np.linalg.norm(full[tensor.name])
    shown = next(t for t in result.types if t.ggml_type == "Q4_0")
    assert shown.worst_tensor == max(errors, key=errors.__getitem__)
    assert shown.worst_error == pytest.approx(max(errors.values()), rel=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "no biases in attention": {"attention_bias": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "padded vocabulary": {"vocab_size": 384},
    "bf16 .bin shards": {"dtype": "bfloat16", "form": "bin", "shards": 3},
    "fp32, rope scaling": {"dtype": "float32", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "rows that 256 does not divide": {"hidden": 160, "intermediate": 320, "rotary_pct": 0.5},
    "sequential residual, another epsilon": {"use_parallel_residual": False, "layer_norm_eps": 0.001},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_of_every_kind_of_checkpoint_pass(tmp_path: Path, variant: str) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", **VARIANTS[variant])
    paths = converted(checkpoint, tmp_path / "out", "F16", "Q8_0", "Q4_K_M")
    assert [list(result.findings) for result in check(checkpoint, *paths)] == [[], [], []]


def test_two_swapped_heads_are_named(tmp_path: Path, demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]) -> None:
    def swap(reader: GGUFReader) -> None:
        rows = tensor_rows(reader, "blk.1.attn_qkv.weight")
        head_dim = 128
        first, second = (slice(i * head_dim, (i + 1) * head_dim) for i in (0, 1))
        kept = np.array(rows[first])
        rows[first] = rows[second]
        rows[second] = kept

    finding = only_finding(demo_checkpoint, spoiled(demo_mixtures["Q4_K_M"], tmp_path, swap))
    assert finding.startswith("blk.1.attn_qkv.weight")
    assert "gpt_neox.layers.1.attention.query_key_value.weight" in finding
    assert "rows 0 to 255" in finding
    assert "the query of head 0 holds the query of head 1" in finding
    assert "the query of head 1 holds the query of head 0" in finding


def test_one_zeroed_block_is_named(tmp_path: Path, demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]) -> None:
    def zero(reader: GGUFReader) -> None:
        rows = tensor_rows(reader, "blk.2.ffn_down.weight")
        n_bytes = rows.shape[1] // 4  # 1024 columns are 4 blocks of 256
        rows[5, 2 * n_bytes : 3 * n_bytes] = 0

    for name in ("Q4_K_M", "Q6_K"):
        finding = only_finding(demo_checkpoint, spoiled(demo_mixtures[name], tmp_path, zero))
        assert finding.startswith("blk.2.ffn_down.weight")
        assert "one block is zero: row 5, columns 512 to 767" in finding


def test_a_bias_that_became_zero_is_named(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path) -> None:
    def zero(reader: GGUFReader) -> None:
        tensor_rows(reader, "blk.3.attn_qkv.bias")[:] = 0

    finding = only_finding(demo_checkpoint, spoiled(demo_f16, tmp_path, zero))
    assert finding.startswith("blk.3.attn_qkv.bias")
    assert "all of it is zero" in finding


def test_a_bias_that_the_checkpoint_has_not_is_named(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", attention_bias=False)
    (path,) = converted(checkpoint, tmp_path / "out", "Q8_0")

    def add(reader: GGUFReader) -> None:
        tensor_rows(reader, "blk.0.attn_qkv.bias")[7] = 0.5

    finding = only_finding(checkpoint, spoiled(path, tmp_path, add))
    assert finding.startswith("blk.0.attn_qkv.bias")
    assert "absent bias, which means zeros" in finding


def test_not_a_number_is_named(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path) -> None:
    def spoil(reader: GGUFReader) -> None:
        tensor_rows(reader, "output_norm.weight")[3] = np.nan

    assert only_finding(demo_checkpoint, spoiled(demo_f16, tmp_path, spoil)).startswith("output_norm.weight")


def test_reordered_merges_are_named(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path) -> None:
    merges = GGUFReader(demo_f16).fields["tokenizer.ggml.merges"].contents()
    first = merges[10]
    second = next(i for i in range(11, len(merges)) if len(merges[i].encode()) == len(first.encode()))
    path = spoiled(demo_f16, tmp_path, lambda reader: swap_strings(reader, "tokenizer.ggml.merges", 10, second))
    finding = only_finding(demo_checkpoint, path)
    assert finding.startswith("tokenizer.ggml.merges is not tokenizer.json's: the same entries in another order")
    assert f"first at rank 10, {merges[second]!r} instead of {first!r}" in finding


METADATA: dict[str, tuple[Any, str]] = {
    "gptneox.rope.dimension_count": (64, "rotary fraction 0.25 of 128 dimensions"),
    "gptneox.rope.freq_base": (500.0, "10000.0"),
    "gptneox.attention.layer_norm_epsilon": (1e-6, "1e-05"),
    "gptneox.use_parallel_residual": (False, "use_parallel_residual"),
    "gptneox.context_length": (4096, "2048"),
    "tokenizer.ggml.bos_token_id": (5, "bos_token_id"),
    "tokenizer.ggml.add_bos_token": (True, "no token is added"),
}


@pytest.mark.parametrize("key", METADATA)
def test_wrong_metadata_is_named(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path, key: str) -> None:
    value, told = METADATA[key]
    path = spoiled(demo_f16, tmp_path, lambda reader: set_scalar(reader, key, value))
    finding = only_finding(demo_checkpoint, path)
    assert finding.startswith(f"{key} is ")
    assert told in finding


def test_another_type_of_token_is_named(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path) -> None:
    def make_normal(reader: GGUFReader) -> None:
        field = reader.fields["tokenizer.ggml.token_type"]
        field.parts[field.data[0]][0] = 1

    finding = only_finding(demo_checkpoint, spoiled(demo_f16, tmp_path, make_normal))
    assert (
        finding
        == "tokenizer.ggml.token_type is not tokenizer.json's: 1 of 3000 entries differ, first at id 0, 1 instead of 3."
    )


def test_tokens_that_are_no_text_are_named(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path) -> None:
    def spoil(reader: GGUFReader) -> None:
        field = reader.fields["tokenizer.ggml.tokens"]
        field.parts[field.data[700]][0] = 0xFF

    finding = only_finding(demo_checkpoint, spoiled(demo_f16, tmp_path, spoil))
    assert finding.startswith("tokenizer.ggml.tokens is not tokenizer.json's")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_text(path: Path) -> None:
    path.write_text("no model")


DAMAGE: dict[str, Callable[[Path], None]] = {"truncated": truncate, "no GGUF": write_text, "absent": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_fails_and_the_others_are_still_checked(
    tmp_path: Path, demo_checkpoint: Path, demo_f16: Path, damage: str
) -> None:
    path = tmp_path / "damaged.gguf"
    shutil.copyfile(demo_f16, path)
    DAMAGE[damage](path)
    damaged, sound = check(demo_checkpoint, path, demo_f16)
    assert not damaged.passed
    assert str(path) in damaged.findings[0]
    assert sound.passed


def test_a_file_of_another_checkpoint_fails(tmp_path: Path, demo_f16: Path) -> None:
    other = random_checkpoint(tmp_path / "other", layers=4, intermediate=1024)
    (result,) = check(other, demo_f16)
    assert not result.passed
    assert any(finding.startswith("token_embd.weight has the shape (3000, 256)") for finding in result.findings)
    assert any(finding.startswith("gptneox.vocab_size is 3000") for finding in result.findings)


def test_all_mixtures_are_known(demo_mixtures: Mapping[str, Path]) -> None:
    assert list(demo_mixtures) == list(MIXTURES)
