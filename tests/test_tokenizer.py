"""Text becomes Hugging Face's ids, and ids become text without half a character."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import Llama
from tokenizers import Tokenizer

from convert.demo.corpus import CHECKPOINT, read_corpus
from convert.run import Request, run
from tests.checkpoints import random_checkpoint
from weblab_local.errors import PromptError
from weblab_local.model_store import demo_model
from weblab_local.tokenizer import TextStream, encode, piece

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
def vocab() -> Iterator[object]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield model._model.vocab
    model.close()


@pytest.fixture(scope="module")
def hugging_face() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def hugging_face_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What Hugging Face gives for text in which special tokens are only text, as a user's text is."""
    assert not any(token in text for token in ("<|endoftext|>", "<|padding|>"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_ids_of_the_corpus_are_hugging_faces(vocab: object, hugging_face: Tokenizer) -> None:
    for pair in read_corpus():
        assert encode(vocab, pair.prompt) == hugging_face_ids(hugging_face, pair.prompt)
        assert encode(vocab, pair.response) == hugging_face_ids(hugging_face, pair.response)


@given(text=st.one_of(ANY_TEXT, JAPANESE))
def test_ids_of_any_text_are_hugging_faces(vocab: object, hugging_face: Tokenizer, text: str) -> None:
    assert encode(vocab, text) == hugging_face_ids(hugging_face, text)


@given(text=JAPANESE)
def test_decomposed_text_has_the_ids_of_composed_text(vocab: object, text: str) -> None:
    assert encode(vocab, unicodedata.normalize("NFD", text)) == encode(vocab, unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    "text", ["", " ", "  ", "a  ", "a\n", "\n\n\n", *(" " * n for n in (23, 24, 25, 100)), "\u3000"]
)
def test_whitespace_has_hugging_faces_ids(vocab: object, hugging_face: Tokenizer, text: str) -> None:
    assert encode(vocab, text) == hugging_face_ids(hugging_face, text)


def test_a_special_token_typed_by_a_user_stays_text(vocab: object) -> None:
    ids = encode(vocab, "a<|endoftext|>b<|padding|>")
    assert not {0, 1} & set(ids)
    assert b"".join(piece(vocab, token) for token in ids) == b"a<|endoftext|>b<|padding|>"


def test_half_a_surrogate_pair_is_refused(vocab: object) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        encode(vocab, "a\ud83d")


@given(text=st.one_of(ANY_TEXT, JAPANESE))
def test_pieces_give_the_normalized_text_back(vocab: object, text: str) -> None:
    pieces = [piece(vocab, token) for token in encode(vocab, text)]
    assert b"".join(pieces).decode() == unicodedata.normalize("NFC", text)


@given(ids=st.lists(st.integers(2, 2999)))
def test_streamed_text_of_random_tokens_is_what_tokenizers_decodes(
    vocab: object, hugging_face: Tokenizer, ids: list[int]
) -> None:
    stream = TextStream()
    text = "".join([*(stream.push(piece(vocab, token)) for token in ids), stream.finish()])
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
def real_tokenizer(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Iterator[tuple[object, Tokenizer]]:
    """The real GPT-NeoX-20B vocabulary, through the converter into a small model, and as tokenizers has it."""
    folder = random_checkpoint(tmp_path_factory.mktemp("real") / "model", layers=1, vocab_size=50277)
    (folder / "tokenizer.json").write_bytes((test_data / "20B_tokenizer.json").read_bytes())
    (gguf,) = run(Request(str(folder), None, ["Q8_0"], folder.parent / "out"))
    model = Llama(str(gguf), vocab_only=True, verbose=False)
    yield model._model.vocab, Tokenizer.from_file(str(folder / "tokenizer.json"))
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
    real_tokenizer: tuple[object, Tokenizer], test_data: Path
) -> None:
    vocab, tokenizer = real_tokenizer
    texts = sorted(set(japanese_texts(test_data)))
    assert len(texts) > 5000
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert [encode(vocab, text) for text in texts] == [encoding.ids for encoding in expected]


@given(text=st.one_of(ANY_TEXT, JAPANESE))
def test_the_real_vocabulary_gives_hugging_faces_ids_on_any_text(
    real_tokenizer: tuple[object, Tokenizer], text: str
) -> None:
    vocab, tokenizer = real_tokenizer
    assert encode(vocab, text) == hugging_face_ids(tokenizer, text)


def test_long_tokens_come_out_whole(real_tokenizer: tuple[object, Tokenizer]) -> None:
    vocab, tokenizer = real_tokenizer
    long = [i for i in range(50277) if len(tokenizer.id_to_token(i) or "") > 32]
    assert len(long) > 100
    for token in long:
        assert piece(vocab, token).decode() == tokenizer.decode([token])
