"""config.json in the forms of transformers 4.2x to 5, and the tokens that end an answer, wherever they are named."""

import json
from pathlib import Path
from typing import Any

import gguf as gguf_py
import pytest
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from convert.errors import ConversionError
from convert.model.gpt_neox import hyperparameters
from convert.source.checkpoint import open_checkpoint
from convert.source.settings import read_config
from convert.verification.file_check import check_files
from tests.convert.refusals.damage import assert_refused, edit_json
from tests.convert.source.test_checkpoint import assert_as_in_transformers
from tests.support.checkpoints import random_checkpoint, tokenizer
from tests.support.conversions import converted
from weblab_local.llama.context import Model

SIZES = {
    "vocab_size": 330,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "model_type": "gpt_neox",
}
OLD = {"rotary_pct": 0.5, "rotary_emb_base": 25000, "torch_dtype": "float16"}
CONFIGS: dict[str, dict[str, Any]] = {
    "4.2x": OLD | {"architectures": ["GPTNeoXForCausalLM"], "tie_word_embeddings": False},
    "4.31, no scaling": OLD | {"rope_scaling": None},
    "4.31, linear": OLD | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "4.43, linear": OLD | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "4.43, both names": OLD | {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}},
    "4.48": OLD | {"partial_rotary_factor": 0.5, "rope_theta": 25000, "attention_bias": True},
    "5": {
        "dtype": "float16",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 25000.0},
    },
    "5, linear": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5, "rope_theta": 25000.0}
    },
    "5, the old names in the new section": OLD | {"rope_parameters": {"type": "linear", "factor": 2.0}},
    "5, both sections": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 25000.0},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "no architectures": {"rotary_pct": 0.5},
    "other token ids": {"bos_token_id": 7, "eos_token_id": 7},
}


@pytest.mark.parametrize("form", CONFIGS)
def test_every_form_of_config_json_is_read_as_transformers_reads_it(tmp_path: Path, form: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | CONFIGS[form]))
    assert_as_in_transformers(hyperparameters(read_config(tmp_path)), tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "model", hidden=64, intermediate=128)


def ends(path: Path) -> set[int]:
    """The tokens that end an answer when the engine runs the file."""
    model = Model(path, 0)
    try:
        return {token for token in range(model.n_vocab) if model.is_end(token)}
    finally:
        model.close()


END_TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, set[int]]] = {
    "config.json alone": ({"eos_token_id": 5}, None, {5}),
    "a list in config.json": ({"eos_token_id": [5, 6]}, None, {5, 6}),
    "generation_config.json has more": ({"eos_token_id": 5}, {"eos_token_id": [5, 6, 7]}, {5, 6, 7}),
    "generation_config.json has another": ({"eos_token_id": 5}, {"eos_token_id": 8}, {5, 8}),
    "null in config.json": ({"eos_token_id": None}, {"eos_token_id": [9, 10]}, {9, 10}),
    "more than llama.cpp has keys for": ({"eos_token_id": [5, 6]}, {"eos_token_id": [7, 8, 9, 10]}, set(range(5, 11))),
    "null for the beginning": ({"bos_token_id": None, "eos_token_id": 5}, {"bos_token_id": None}, {5}),
    "null in generation_config.json": ({"eos_token_id": 5}, {"eos_token_id": None}, {5}),
}


@pytest.mark.parametrize("case", END_TOKENS)
def test_all_end_tokens_end_an_answer(checkpoint: Path, tmp_path: Path, case: str) -> None:
    config, generation, expected = END_TOKENS[case]
    edit_json(checkpoint / "config.json", **config)
    (checkpoint / "generation_config.json").write_text(json.dumps(generation or {}))
    (path,) = converted(checkpoint, tmp_path / "output", "Q8_0")
    # <|endoftext|> ends a text in every GGUF: llama.cpp knows it by its name.
    assert ends(path) == expected | {0}
    used = GPTNeoXForCausalLM.from_pretrained(checkpoint).generation_config.eos_token_id
    assert {*(used if isinstance(used, list) else [used])} - {None} <= expected


def test_the_tokenizer_names_the_end_where_both_configs_are_silent(checkpoint: Path, tmp_path: Path) -> None:
    edit_json(checkpoint / "config.json", eos_token_id=None)
    (checkpoint / "generation_config.json").unlink()
    assert_refused(checkpoint, "name a token below", "eos_token_id")
    edit_json(checkpoint / "tokenizer_config.json", eos_token={"content": "<|padding|>", "special": True})
    (path,) = converted(checkpoint, tmp_path / "output", "Q8_0")
    assert ends(path) == {0, 1}


def test_without_a_beginning_the_end_stands_for_it_and_is_put_nowhere(checkpoint: Path, tmp_path: Path) -> None:
    edit_json(checkpoint / "config.json", bos_token_id=None, eos_token_id=5)
    (path,) = converted(checkpoint, tmp_path / "output", "Q8_0")
    fields = gguf_py.GGUFReader(path).fields
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 5
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert GPTNeoXConfig.from_pretrained(checkpoint).bos_token_id is None


@pytest.mark.parametrize("value", ["0", 400, [0, 400], True, [0.5]], ids=repr)
def test_end_tokens_of_generation_config_that_cannot_be_are_named(checkpoint: Path, value: Any) -> None:
    edit_json(checkpoint / "generation_config.json", eos_token_id=value)
    assert_refused(checkpoint, "generation_config.json: eos_token_id ", "400" if "400" in repr(value) else repr(value))


def test_dollys_end_of_an_answer_ends_it(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", hidden=64, intermediate=128, vocab_size=333)
    made = tokenizer()
    made.add_special_tokens(["### End", "### Instruction:", "### Response:"])
    made.save(str(folder / "tokenizer.json"))
    (path,) = converted(folder, tmp_path / "output", "Q8_0")
    assert ends(path) == {0, 330}


def test_openassistants_turns_end_with_the_end_of_text(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", hidden=64, intermediate=128, vocab_size=334)
    made = tokenizer()
    made.add_special_tokens(["<|prompter|>", "<|assistant|>", "<|system|>", "<|prefix_begin|>"])
    made.save(str(folder / "tokenizer.json"))
    (path,) = converted(folder, tmp_path / "output", "Q8_0")
    assert ends(path) == {0}
    assert gguf_py.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()[330:] == [
        "<|prompter|>",
        "<|assistant|>",
        "<|system|>",
        "<|prefix_begin|>",
    ]


def test_a_result_is_made_again_when_another_end_token_was_named(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "output", "Q8_0")
    edit_json(checkpoint / "generation_config.json", temperature=0.5)
    converted(checkpoint, tmp_path / "output", "Q8_0")
    for named in ([0, 5], [0, 6], 0):
        edit_json(checkpoint / "generation_config.json", eos_token_id=named)
        with pytest.raises(ConversionError, match="not made from this checkpoint"):
            converted(checkpoint, tmp_path / "output", "Q8_0")
        converted(checkpoint, tmp_path / "output", "Q8_0", force=True)


def test_a_comparison_finds_an_end_token_that_a_file_lacks(checkpoint: Path, tmp_path: Path) -> None:
    (path,) = converted(checkpoint, tmp_path / "output", "Q8_0")
    assert check_files(open_checkpoint(checkpoint), [path], 1)[0].findings == []
    edit_json(checkpoint / "generation_config.json", eos_token_id=[0, 5])
    (finding,) = check_files(open_checkpoint(checkpoint), [path], 1)[0].findings
    assert "tokenizer.ggml.eot_token_id is missing in the metadata" in finding
