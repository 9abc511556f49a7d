"""A GGUF with a damaged header is refused by name, or works; it ends no process.

tests/benchmarks/damaged_gguf.py tries every value.
"""

from pathlib import Path

import pytest

from tests.support.damaged_gguf import INFINITY, NAN, Changed, Value, outcomes, values, write_changed
from weblab_local.errors import ModelFileError
from weblab_local.llama.gguf_header import read_header
from weblab_local.llama.gptneox import require_gptneox
from weblab_local.models.store import demo_model

TOKENS = values(demo_model())["tokenizer.ggml.tokens"].value
N = len(TOKENS)

REFUSED = [
    *(Changed("gptneox.rope.dimension_count", Value("u32", n)) for n in (0, 31, 130, 2**31, 2**32 - 2)),
    *(Changed("gptneox.attention.layer_norm_epsilon", Value("f32", n)) for n in (-1e-5, NAN, -INFINITY)),
    *(Changed("gptneox.attention.head_count", Value("u32", n)) for n in (0, 3, 16, 256, 2**31)),
    *(Changed("gptneox.block_count", Value("u32", n)) for n in (0, 5, 513, 2**32 - 1)),
    *(Changed("gptneox.context_length", Value("u32", n)) for n in (0, 2**32 - 1)),
    Changed("gptneox.embedding_length", Value("u32", 0)),
    Changed("gptneox.embedding_length", Value("f32", NAN)),
    Changed("gptneox.feed_forward_length", Value("f64", INFINITY)),
    Changed("gptneox.rope.freq_base", Value("f32", NAN)),
    Changed("gptneox.rope.scaling.type", Value("str", "x")),
    Changed("gptneox.attention.head_count_kv", Value("u32", 1)),
    Changed("gptneox.attention.key_length", Value("u32", 64)),
    Changed("gptneox.attention.value_length", Value("u32", 0)),
    Changed("gptneox.expert_count", Value("u32", 2**20)),
    Changed("gptneox.expert_used_count", Value("u32", 1)),
    Changed("gptneox.nextn_predict_layers", Value("u32", 9)),
    Changed("gptneox.pooling_type", Value("u32", 9)),
    Changed("gptneox.use_parallel_residual", Value("str", "")),
    Changed("general.alignment", Value("u32", 8)),
    Changed("tokenizer.ggml.model", Value("str", "none")),
    Changed("tokenizer.ggml.model", Value("str", "llama")),
    Changed("tokenizer.ggml.pre", Value("str", "gemma4")),
    Changed("tokenizer.ggml.tokens", Value("[str]", [])),
    Changed("tokenizer.ggml.tokens", Value("[str]", [*TOKENS[:-1], TOKENS[0]])),
    Changed("tokenizer.ggml.tokens", Value("[str]", TOKENS[:-1])),
    Changed("tokenizer.ggml.tokens", Value("[str]", ["", *TOKENS[2:], "[EMPTY_0]"])),
    Changed("tokenizer.ggml.token_type", Value("[i32]", [6] * N)),
    Changed("tokenizer.ggml.token_type", Value("[i32]", [])),
    Changed("tokenizer.ggml.eos_token_id", Value("u32", N)),
    Changed("tokenizer.ggml.merges", None),
]
WORKING = [
    Changed("general.name", Value("str", "x" * 100_000)),
    Changed("general.license", Value("[f32]", [NAN])),
    Changed("gptneox.attention.layer_norm_epsilon", Value("f32", 0.0)),
    Changed("gptneox.rope.dimension_count", Value("u32", 128)),
    Changed("gptneox.attention.head_count_kv", Value("u32", 2)),
    Changed("tokenizer.ggml.token_type", None),
]
NO_TEMPLATE = Changed("tokenizer.chat_template", Value("str", b"\xff"))
"""Refused only where an instruction is to be put into it."""


def test_a_damaged_header_ends_no_process(tmp_path: Path) -> None:
    cases = [*REFUSED, *WORKING, NO_TEMPLATE]
    found = dict(zip(map(str, cases), outcomes(demo_model(), tmp_path, ([case] for case in cases)), strict=True))
    assert {case: outcome for case, outcome in found.items() if not outcome.startswith(("works", "refused"))} == {}
    assert [case for case in map(str, REFUSED) if not found[case].startswith("refused: ModelFileError")] == []
    assert [case for case in map(str, WORKING) if not found[case].startswith("works")] == []
    assert "chat template cannot be used" in found[str(NO_TEMPLATE)]


@pytest.mark.parametrize("change", REFUSED[:10], ids=str)
def test_what_is_wrong_is_named(tmp_path: Path, change: Changed) -> None:
    damaged = tmp_path / "damaged.gguf"
    write_changed(demo_model(), damaged, [change])
    with pytest.raises(ModelFileError, match=rf"damaged\.gguf is damaged: {change.key}|head_count"):
        require_gptneox(read_header(damaged))
