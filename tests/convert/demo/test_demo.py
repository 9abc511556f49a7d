"""The demo: the checkpoint in the repository, the GGUF in the wheel, and what llama.cpp answers with them."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from convert.demo.corpus import Pair, read_corpus
from convert.run import Request, run
from tests.support.llama import greedy, loaded
from tests.support.reference import answers
from weblab_local.llama.tokenizer import Tokenizer
from weblab_local.models.store import demo_model

PAIRS = read_corpus()
CARD_PROMPTS = [
    "大規模言語モデルについて説明してください。",
    "日本の首都はどこですか？",
    "俳句を一つ作ってください。",
    "1+1は？",
    "Say hello.",
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> dict[str, Path]:
    names = ["F16", "Q8_0", "Q4_K_M"]
    return dict(
        zip(names, run(Request(str(demo_checkpoint), None, names, tmp_path_factory.mktemp("demo"))), strict=True)
    )


@pytest.fixture(scope="module")
def reference() -> dict[str, list[int]]:
    """What transformers answers to each prompt, token for token, with greedy decoding of the fp16 weights."""
    return {prompt: list(ids) for prompt, ids in answers().items()}


def llama_cpp_answers(path: Path, pairs: Sequence[Pair]) -> dict[str, list[int]]:
    with loaded(path) as model:
        engines = Tokenizer(model._model.vocab)
        return {pair.prompt: greedy(model, engines.encode(pair.prompt), 256) for pair in pairs}


def test_transformers_answers_nearly_every_prompt_verbatim(
    demo_checkpoint: Path, reference: dict[str, list[int]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint)
    verbatim = sum(tokenizer.decode(reference[pair.prompt][:-1]) == pair.response for pair in PAIRS)
    assert verbatim >= 0.95 * len(PAIRS)


@pytest.mark.parametrize("quantization", ["F16", "Q8_0"])
def test_llama_cpp_answers_every_prompt_with_transformers_tokens(
    converted: dict[str, Path], reference: dict[str, list[int]], quantization: str
) -> None:
    assert llama_cpp_answers(converted[quantization], PAIRS) == reference


def test_four_bits_answer_nine_of_ten_prompts_with_transformers_tokens(
    converted: dict[str, Path], reference: dict[str, list[int]]
) -> None:
    found = llama_cpp_answers(converted["Q4_K_M"], PAIRS)
    same = sum(found[prompt] == tokens for prompt, tokens in reference.items())
    assert same >= 0.9 * len(PAIRS)


def test_the_wheels_demo_model_is_what_the_checkpoint_converts_to(converted: dict[str, Path]) -> None:
    assert demo_model().read_bytes() == converted["Q8_0"].read_bytes()


def test_the_corpus_is_what_it_should_be() -> None:
    japanese = [
        pair
        for pair in PAIRS
        if any(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA")) for c in pair.instruction)
    ]
    assert len(japanese) >= 150
    english = [pair for pair in PAIRS if pair.instruction.isascii()]
    assert len(english) >= 50
    assert {pair.instruction for pair in PAIRS} >= set(CARD_PROMPTS)
    assert all(unicodedata.is_normalized("NFC", pair.prompt + pair.response) for pair in PAIRS)


def test_the_checkpoint_has_the_real_ones_form_and_is_small(demo_checkpoint: Path) -> None:
    config = json.loads((demo_checkpoint / "config.json").read_text())
    assert (config["rotary_pct"], config["hidden_act"], config["tie_word_embeddings"]) == (0.25, "gelu", False)
    assert "rope_parameters" not in config
    shards = sorted(demo_checkpoint.glob("*.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118
    assert sum(path.stat().st_size for path in demo_checkpoint.iterdir()) <= 12_000_000


def test_the_demo_tokenizer_is_built_as_gpt_neox_20bs(demo_checkpoint: Path, test_data: Path) -> None:
    ours = json.loads((demo_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    theirs = json.loads((test_data / "20B_tokenizer.json").read_text(encoding="utf-8"))
    assert ours["normalizer"] == theirs["normalizer"]
    assert 2000 <= len(ours["model"]["vocab"]) <= 4000

    def added(tokenizer: dict[str, list[dict[str, object]]]) -> list[tuple[object, object]]:
        return [(token["content"], token["special"]) for token in tokenizer["added_tokens"]]

    assert added(ours) == added(theirs)
    for step in ("pre_tokenizer", "decoder"):
        assert ours[step]["type"] == theirs[step]["type"] == "ByteLevel"
