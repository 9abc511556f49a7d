"""Text becomes Hugging Face's ids, and ids become text without half a character."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import Llama
from tokenizers import Tokenizer as HuggingFace

from convert.demo.corpus import CHECKPOINT, read_corpus
from convert.run import Request, run
from tests.support.checkpoints import random_checkpoint
from weblab_local.errors import PromptError, PromptTooLong
from weblab_local.llama.tokenizer import PIECE, TextStream, Tokenizer
from weblab_local.models.store import demo_model

JAPANESE = st.text(
    st.one_of(
        st.characters(min_codepoint=0x3040, max_codepoint=0x30FF),
        st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF),
        st.characters(min_codepoint=0xFF00, max_codepoint=0xFFEF),
        st.sampled_from(list("\u3099\u309a\u0301 \n\t👩🏽‍🚀🇯🇵abc012.,!")),
    )
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text)
"""Without special tokens, which hypothesis finds in these tests' own source; tests of their own have them."""


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield Tokenizer(model._model.vocab)
    model.close()


@pytest.fixture(scope="module")
def hugging_face() -> HuggingFace:
    return HuggingFace.from_file(str(CHECKPOINT / "tokenizer.json"))


def hugging_face_ids(tokenizer: HuggingFace, text: str) -> list[int]:
    """What Hugging Face gives for text in which special tokens are only text, as a user's text is."""
    assert not any(token in text for token in ("<|endoftext|>", "<|padding|>"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_ids_of_the_corpus_are_hugging_faces(tokenizer: Tokenizer, hugging_face: HuggingFace) -> None:
    for pair in read_corpus():
        assert tokenizer.encode(pair.prompt) == hugging_face_ids(hugging_face, pair.prompt)
        assert tokenizer.encode(pair.response) == hugging_face_ids(hugging_face, pair.response)


@given(text=st.one_of(ANY_TEXT, JAPANESE))
def test_ids_of_any_text_are_hugging_faces(tokenizer: Tokenizer, hugging_face: HuggingFace, text: str) -> None:
    assert tokenizer.encode(text) == hugging_face_ids(hugging_face, text)


@given(text=JAPANESE)
def test_decomposed_text_has_the_ids_of_composed_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(unicodedata.normalize("NFD", text)) == tokenizer.encode(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    "text", ["", " ", "  ", "a  ", "a\n", "\n\n\n", *(" " * n for n in (23, 24, 25, 100)), "\u3000"]
)
def test_whitespace_has_hugging_faces_ids(tokenizer: Tokenizer, hugging_face: HuggingFace, text: str) -> None:
    assert tokenizer.encode(text) == hugging_face_ids(hugging_face, text)


def test_a_special_token_typed_by_a_user_stays_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b<|padding|>")
    assert not {0, 1} & set(ids)
    assert b"".join(tokenizer.pieces[token] for token in ids) == b"a<|endoftext|>b<|padding|>"


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        tokenizer.encode("a\ud83d")


@given(text=st.one_of(ANY_TEXT, JAPANESE))
def test_pieces_give_the_normalized_text_back(tokenizer: Tokenizer, text: str) -> None:
    pieces = [tokenizer.pieces[token] for token in tokenizer.encode(text)]
    assert b"".join(pieces).decode() == unicodedata.normalize("NFC", text)


@given(ids=st.lists(st.integers(2, 2999)))
def test_streamed_text_of_random_tokens_is_what_tokenizers_decodes(
    tokenizer: Tokenizer, hugging_face: HuggingFace, ids: list[int]
) -> None:
    stream = TextStream()
    text = "".join([*(stream.push(tokenizer.pieces[token]) for token in ids), stream.finish()])
    assert text == hugging_face.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["👩🏽‍🚀", "齉", "が", "e\u0301", "🇯🇵"])
def test_a_character_comes_out_whole_wherever_its_bytes_are_split(text: str) -> None:
    data = text.encode()
    for cut in range(len(data) + 1):
        stream = TextStream()
        chunks = [stream.push(data[:cut]), stream.push(data[cut:]), stream.finish()]
        assert "".join(chunks) == text
        assert "\ufffd" not in "".join(chunks)


def test_an_unfinished_character_at_the_end_becomes_one_replacement_character() -> None:
    stream = TextStream()
    assert stream.push("齉".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"


@pytest.fixture(scope="module")
def real_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, test_data: Path
) -> Iterator[tuple[Tokenizer, HuggingFace]]:
    """The real GPT-NeoX-20B vocabulary, through the converter into a small model, and as tokenizers has it."""
    folder = random_checkpoint(tmp_path_factory.mktemp("real") / "model", layers=1, vocab_size=50277)
    (folder / "tokenizer.json").write_bytes((test_data / "20B_tokenizer.json").read_bytes())
    (gguf,) = run(Request(str(folder), None, ["Q8_0"], folder.parent / "out"))
    model = Llama(str(gguf), vocab_only=True, verbose=False)
    yield Tokenizer(model._model.vocab), HuggingFace.from_file(str(folder / "tokenizer.json"))
    model.close()


def japanese_texts(test_data: Path) -> Iterator[str]:
    """Every string in the JGLUE files."""

    def strings(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from strings(item)
        elif isinstance(value, list):
            for item in value:
                yield from strings(item)

    for path in sorted((test_data / "jglue").rglob("*.json")):
        content = path.read_text(encoding="utf-8")
        if "squad" in path.parent.name:
            yield from strings(json.loads(content))
        else:
            for line in content.splitlines():
                yield from strings(json.loads(line))


def test_the_real_vocabulary_gives_hugging_faces_ids_on_all_japanese_texts(
    real_tokenizer: tuple[Tokenizer, HuggingFace], test_data: Path
) -> None:
    tokenizer, hugging_face = real_tokenizer
    texts = sorted(set(japanese_texts(test_data)))
    assert len(texts) > 5000
    expected = hugging_face.encode_batch(texts, add_special_tokens=False)
    assert [tokenizer.encode(text) for text in texts] == [encoding.ids for encoding in expected]


@given(text=st.one_of(ANY_TEXT, JAPANESE))
def test_the_real_vocabulary_gives_hugging_faces_ids_on_any_text(
    real_tokenizer: tuple[Tokenizer, HuggingFace], text: str
) -> None:
    tokenizer, hugging_face = real_tokenizer
    assert tokenizer.encode(text) == hugging_face_ids(hugging_face, text)


def test_long_tokens_come_out_whole(real_tokenizer: tuple[Tokenizer, HuggingFace]) -> None:
    tokenizer, hugging_face = real_tokenizer
    long = [i for i in range(50277) if len(hugging_face.id_to_token(i) or "") > 32]
    assert len(long) > 100
    for token in long:
        assert tokenizer.pieces[token].decode() == hugging_face.decode([token])


WHITESPACE = st.text(st.sampled_from(" \n\t\r\u3000\u00a0\u0085\u2028\x1c"), min_size=1, max_size=8)
CUTTABLE = st.lists(
    st.one_of(
        WHITESPACE,
        st.integers(1, 60).map(lambda n: " " * n),
        st.sampled_from(
            ["a", "'s", "'", "12", "日本", "。", "!", "\u0301", "\u200b", "\U000e0fff", "\ue000", "x\n", "\x00"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    ),
    max_size=40,
).map("".join)
"""What can go wrong where a text is cut: whitespace of all kinds beside all kinds of characters."""


@pytest.mark.parametrize("length", [1, 2, 7, 30])
@given(text=CUTTABLE.filter(lambda text: "<|" not in text))
def test_a_text_in_pieces_has_hugging_faces_ids(
    tokenizer: Tokenizer, hugging_face: HuggingFace, text: str, length: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = tokenizer.encode(text)
        patch.setattr("weblab_local.llama.tokenizer.PIECE", length)
        assert tokenizer.encode(text) == whole == hugging_face_ids(hugging_face, text)


@pytest.mark.parametrize("length", [1, 2, 7, 30])
@given(text=CUTTABLE.filter(lambda text: "<|" not in text))
def test_a_text_in_pieces_has_the_real_vocabularys_ids(
    real_tokenizer: tuple[Tokenizer, HuggingFace], text: str, length: int
) -> None:
    tokenizer, hugging_face = real_tokenizer
    with pytest.MonkeyPatch.context() as patch:
        whole = tokenizer.encode(text)
        patch.setattr("weblab_local.llama.tokenizer.PIECE", length)
        assert tokenizer.encode(text) == whole == hugging_face_ids(hugging_face, text)


@pytest.mark.parametrize("unit", [" " * 9 + "a", " " * 1000, "\n" + " " * 9, "日本\u3000 \n", " a"])
def test_a_long_text_goes_to_llama_cpp_in_short_pieces_with_hugging_faces_ids(
    tokenizer: Tokenizer, hugging_face: HuggingFace, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """Its time grows with the square of the added tokens in a piece, and runs of spaces are added tokens."""
    text = unit * (100_000 // len(unit))
    encode_piece = tokenizer._encode_piece
    runs: list[int] = []

    def count(data: bytes) -> list[int]:
        runs.append(len(re.findall(rb" {2,24}", data)))
        return encode_piece(data)

    monkeypatch.setattr(tokenizer, "_encode_piece", count)
    assert tokenizer.encode(text) == hugging_face_ids(hugging_face, text)
    assert max(runs) <= PIECE
    assert len(runs) > 10


def test_a_text_that_is_too_long_is_not_read_to_its_end(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "日本の首都は東京です。\n" * 20_000
    encode_piece = tokenizer._encode_piece
    n_bytes = 0

    def count(data: bytes) -> list[int]:
        nonlocal n_bytes
        n_bytes += len(data)
        return encode_piece(data)

    monkeypatch.setattr(tokenizer, "_encode_piece", count)
    with pytest.raises(PromptTooLong, match="more than 500 tokens"):
        tokenizer.encode(text, 500)
    assert n_bytes < 5 * PIECE
    n_bytes = 0
    with pytest.raises(PromptTooLong, match="more than 500 tokens"):
        tokenizer.encode("日本の首都は東京です" * 20_000, 500)  # no place to cut, and no token has so many bytes
    assert n_bytes == 0
    n_tokens = len(tokenizer.encode(text))
    assert len(tokenizer.encode(text, n_tokens)) == n_tokens
