"""Damaged JSON, and tokenizers that llama.cpp has no name for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.errors import UnsupportedModelError
from tests.convert.refusals.damage import (
    BYTE_LEVEL,
    INDEXES,
    assert_refused,
    put,
    small_checkpoint,
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no valid JSON"),
        (b'{"hidden_size": 64,', "no valid JSON"),
        (b"\0" * 4096, "no valid JSON"),
        (b'{"model_type": "\xff"}', "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"<!DOCTYPE html>", "no valid JSON"),
        (b"[]", "should hold a JSON object"),
        (b"null", "should hold a JSON object"),
        (b'"config"', "should hold a JSON object"),
    ],
    ids=lambda value: repr(value[:20]),
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *INDEXES.values()])
def test_damaged_json_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin" if ".bin" in name else "safetensors", shards=3)
    assert (folder / name).is_file()
    (folder / name).write_bytes(content)
    assert_refused(folder, str(folder / name), reason)


def test_a_folder_in_the_place_of_a_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.json").mkdir()
    assert_refused(checkpoint, str(checkpoint / "tokenizer.json"), "cannot be read")


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def edit_tokenizer(folder: Path, edit: Callable[[Any], Any]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    edit(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def test_a_missing_tokenizer_json_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert_refused(checkpoint, "tokenizer.json is missing", str(checkpoint))


@pytest.mark.parametrize(
    ("edit", "culprit"),
    [
        (put("model", {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]], "byte_fallback": False}), "Unigram"),
        (put("model", {"type": "WordPiece", "vocab": {"a": 0}}), "WordPiece"),
        (put("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "WordLevel"),
        (put("model", "byte_fallback", True), "byte_fallback"),
        (put("model", "ignore_merges", True), "ignore_merges"),
        (put("model", "dropout", 0.1), "dropout"),
        (put("model", "continuing_subword_prefix", "##"), "continuing_subword_prefix"),
        (put("model", "end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (put("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}), "Metaspace"),
        (put("pre_tokenizer", {"type": "Whitespace"}), "Whitespace"),
        (put("pre_tokenizer", None), "nothing"),
        (
            put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, BYTE_LEVEL]}),
            "Punctuation and ByteLevel",
        ),
        (put("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}), "adds a space in front"),
        (put("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}), "does not split as GPT-2 does"),
        (put("normalizer", {"type": "Lowercase"}), "Lowercase"),
        (put("normalizer", {"type": "NFKC"}), "NFKC"),
        (
            put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
            "NFC and Lowercase",
        ),
        (put("added_tokens", 0, "rstrip", True), "<|endoftext|>"),
        (put("added_tokens", -1, "single_word", True), "'  '"),
        (
            put(
                "post_processor",
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                    "special_tokens": {
                        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
                    },
                },
            ),
            "1 special tokens",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tokenizer_of_another_kind_is_named(checkpoint: Path, edit: Callable[[Any], Any], culprit: str) -> None:
    edit_tokenizer(checkpoint, edit)
    assert_refused(checkpoint, culprit, kind=UnsupportedModelError)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tokenizer: tokenizer.pop("model"),
        put("model", None),
        put("model", []),
        put("model", ["BPE"]),
        put("model", "BPE"),
        lambda tokenizer: tokenizer["model"].pop("vocab"),
        put("model", "vocab", {}),
        put("model", "vocab", None),
        put("model", "vocab", ["a", "b"]),
        put("model", "vocab", "extra", "5"),
        put("model", "vocab", "extra", -1),
        put("model", "vocab", "extra", 5.5),
        put("model", "vocab", "extra", 5),
        lambda tokenizer: tokenizer["model"].pop("merges"),
        put("model", "merges", None),
        put("model", "merges", [1]),
        put("model", "merges", ["ab"]),
        put("model", "merges", [["a", "b", "c"]]),
        put("model", "merges", ["unknown pieces"]),
        put("added_tokens", {"a": 1}),
        put("added_tokens", [1]),
        put("added_tokens", [{"content": "a"}]),
        put("added_tokens", [{"id": 0, "special": True}]),
        put("added_tokens", [{"id": 0, "content": "a"}]),
        put("added_tokens", 0, "id", "0"),
        put("added_tokens", 0, "id", -1),
        put("added_tokens", 0, "content", 1),
        put("normalizer", "NFC"),
        put("normalizer", {}),
        put("normalizer", {"type": "Sequence"}),
        put("normalizer", {"type": "Sequence", "normalizers": [1]}),
        put("pre_tokenizer", "ByteLevel"),
        put("pre_tokenizer", []),
    ],
)
def test_a_damaged_tokenizer_json_is_named(checkpoint: Path, edit: Callable[[Any], Any]) -> None:
    edit_tokenizer(checkpoint, edit)
    assert_refused(checkpoint, "tokenizer.json")


@pytest.mark.parametrize(
    "edit",
    [put("model", "vocab", "extra", 330), put("added_tokens", -1, "id", 1000)],
    ids=["in the vocab", "among the added tokens"],
)
def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(
    checkpoint: Path, edit: Callable[[Any], Any]
) -> None:
    edit_tokenizer(checkpoint, edit)
    assert_refused(checkpoint, "tokenizer.json has ids up to", "330 rows")
