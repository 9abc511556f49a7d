"""Tokenizers as people save them: in two files, in another folder, with tokens that were added, and SentencePiece."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf as gguf_py
import pytest
from transformers import GPTNeoXTokenizer

from convert.errors import ConversionError, UnsupportedModelError
from convert.reference.texts import read_tokenizer
from tests.convert.refusals.damage import assert_refused, edit_json
from tests.support.checkpoints import WORDS, random_checkpoint, tokenizer
from tests.support.conversions import converted, run_convert


@pytest.fixture
def checkpoint(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "model"))


def fields(path: Path) -> dict[str, Any]:
    found = gguf_py.GGUFReader(path).fields
    return {name: found[name].contents() for name in found if name.startswith("tokenizer.")}


def in_two_files(checkpoint: Path, added: bool = True) -> None:
    """Put vocab.json, merges.txt and added_tokens.json in the place of tokenizer.json."""
    content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    more = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    vocab = {token: i for token, i in content["model"]["vocab"].items() if token not in more or i < 2}
    (checkpoint / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (checkpoint / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    if added:
        runs = {token: i for token, i in more.items() if token not in vocab}
        (checkpoint / "added_tokens.json").write_text(json.dumps(runs), encoding="utf-8")
    (checkpoint / "tokenizer.json").unlink()


def test_vocab_json_and_merges_txt_give_what_tokenizer_json_gives(
    checkpoint: Path, expected: bytes, tmp_path: Path
) -> None:
    in_two_files(checkpoint)
    assert converted(checkpoint, tmp_path / "output", "Q8_0")[0].read_bytes() == expected


def test_they_are_read_as_transformers_reads_them(checkpoint: Path) -> None:
    in_two_files(checkpoint, added=False)
    theirs = GPTNeoXTokenizer(vocab=str(checkpoint / "vocab.json"), merges=str(checkpoint / "merges.txt"))
    ours = read_tokenizer(checkpoint)
    for text in [*WORDS, "e\u0301 ﾊﾝｶｸ  two spaces\n\ttab 🙂"]:
        assert ours.encode(text).ids == theirs.encode(text)


def test_an_added_token_whose_id_the_vocabulary_does_not_bear_out_is_named(checkpoint: Path) -> None:
    in_two_files(checkpoint)
    edit_json(checkpoint / "added_tokens.json", **{"<|user|>": 400})
    edit_json(checkpoint / "config.json", vocab_size=500)
    assert_refused(checkpoint, "'<|user|>' should have the id 400")


@pytest.mark.parametrize(
    ("name", "content"), [("merges.txt", "#version: 0.2\nno merge of three\n"), ("vocab.json", '{"a": "b"}')]
)
def test_damage_in_the_two_files_is_named(checkpoint: Path, name: str, content: str) -> None:
    in_two_files(checkpoint)
    (checkpoint / name).write_text(content)
    assert_refused(checkpoint, "vocab.json and merges.txt", str(checkpoint))


def test_the_tokenizer_of_another_folder(checkpoint: Path, expected: bytes, tmp_path: Path) -> None:
    other = tmp_path / "base"
    other.mkdir()
    (checkpoint / "tokenizer.json").rename(other / "tokenizer.json")
    assert_refused(checkpoint, f"tokenizer.json is missing in {checkpoint}")
    made = converted(checkpoint, tmp_path / "output", "Q8_0", tokenizer=other)[0]
    assert made.read_bytes() == expected
    again = run_convert(checkpoint, "--output", tmp_path / "output", "--quant", "Q8_0", "--tokenizer", other)
    assert "is up to date" in again.stderr
    assert again.returncode == 0
    edit_json(other / "tokenizer.json", version="1.0", truncation=None)
    with pytest.raises(ConversionError, match="not made from this checkpoint"):
        converted(checkpoint, tmp_path / "output", "Q8_0", tokenizer=other)


def test_the_comparison_takes_the_tokenizer_of_another_folder_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERIFY", "")
    other = tmp_path / "base"
    other.mkdir()
    (checkpoint / "tokenizer.json").rename(other / "tokenizer.json")
    made = converted(checkpoint, tmp_path / "output", "Q8_0", tokenizer=other)[0]
    assert json.loads(made.with_suffix(".json").read_text())["verification"]["passed"]


def test_a_folder_of_a_tokenizer_that_is_none_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"There is no folder .*nowhere"):
        converted(checkpoint, tmp_path / "output", "Q8_0", tokenizer=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_a_sentencepiece_model_is_refused_as_what_it_is(checkpoint: Path, name: str) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    assert_refused(checkpoint, f"SentencePiece model ({name})", "rinna", kind=UnsupportedModelError)


def add_token(checkpoint: Path, content: str, special: bool) -> None:
    made = tokenizer()
    (made.add_special_tokens if special else made.add_tokens)([content])
    made.save(str(checkpoint / "tokenizer.json"))


def test_an_added_token_with_a_row_is_in_the_vocabulary(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", hidden=64, intermediate=128, vocab_size=331)
    add_token(folder, "<|user|>", special=True)
    found = fields(converted(folder, tmp_path / "output", "Q8_0")[0])
    assert found["tokenizer.ggml.tokens"][330] == "<|user|>"
    assert found["tokenizer.ggml.token_type"][330] == gguf_py.TokenType.CONTROL


def test_a_special_token_without_a_row_is_left_out_and_said_so(
    checkpoint: Path, expected: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_token(checkpoint, "[PAD]", special=True)
    assert converted(checkpoint, tmp_path / "output", "Q8_0")[0].read_bytes() == expected
    assert "Left out of the vocabulary, because the embedding has no rows for them: [PAD]." in capsys.readouterr().err


def test_a_token_without_a_row_that_texts_hold_is_refused(checkpoint: Path) -> None:
    add_token(checkpoint, "東京", special=False)
    assert_refused(checkpoint, "tokenizer.json has ids up to 330, but the embedding has 330 rows")
