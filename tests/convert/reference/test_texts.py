"""The texts for calibration and verification: what they are, how they are read, and the ids made of them."""

import hashlib
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from convert.demo.corpus import CORPUS
from convert.errors import CheckpointError, TextsError
from convert.reference.texts import (
    CALIBRATION,
    MAX_BYTES,
    VERIFICATION,
    Text,
    calibration,
    describe,
    read_texts,
    read_tokenizer,
    sequences,
    verification,
)
from tests.support.llama import loaded
from weblab_local.llama import tokenizer as engine_tokenizer

END_OF_TEXT = 0
GROUPS = [("ja", True), ("en", True), ("ja", False), ("en", False)]
SETS = {"calibration": calibration, "verification": verification}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def n_bytes(rows: list[dict[str, str]]) -> int:
    return sum(len(value.encode()) for row in rows for key, value in row.items() if key != "language")


def group(text: Text) -> tuple[str, bool]:
    return text.language, text.in_template


@pytest.fixture(scope="module")
def tokenizer(demo_checkpoint: Path) -> Tokenizer:
    return read_tokenizer(demo_checkpoint)


def test_the_calibration_texts_are_60_to_80_kb_and_two_thirds_japanese() -> None:
    ja, en, prose = (rows(CALIBRATION / f"{name}.jsonl") for name in ("ja", "en", "prose"))
    ja_prose = [row for row in prose if row["language"] == "ja"]
    total = n_bytes(ja) + n_bytes(en) + n_bytes(prose)
    assert 60_000 <= total <= 80_000
    assert 0.62 <= (n_bytes(ja) + n_bytes(ja_prose)) / total <= 0.72
    assert 6_000 <= n_bytes(prose) <= 10_000


def test_the_verification_texts_are_about_24_kb_in_four_groups() -> None:
    ja, en, prose = (rows(VERIFICATION / f"{name}.jsonl") for name in ("ja", "en", "prose"))
    sizes = [n_bytes(ja), n_bytes(en), *(n_bytes([r for r in prose if r["language"] == one]) for one in ("ja", "en"))]
    assert 22_000 <= sum(sizes) <= 26_000
    assert min(sizes) >= 3_000
    assert {group(text) for text in verification()} == set(GROUPS)


@pytest.mark.parametrize("folder", [CALIBRATION, VERIFICATION], ids=lambda folder: folder.name)
def test_every_row_has_its_fields_and_answers_of_30_to_400_characters(folder: Path) -> None:
    for row in rows(folder / "ja.jsonl") + rows(folder / "en.jsonl"):
        assert list(row) in (["instruction", "output"], ["instruction", "input", "output"])
        assert all(value == value.strip() and value for value in row.values())
        assert 30 <= len(row["output"]) <= 400
    for row in rows(folder / "prose.jsonl"):
        assert list(row) == ["language", "text"]
        assert row["language"] in ("ja", "en")
        assert row["text"] == row["text"].strip() != ""


@pytest.mark.parametrize("folder", [CALIBRATION, VERIFICATION], ids=lambda folder: folder.name)
def test_the_texts_hold_what_users_type(folder: Path) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jsonl")))
    for kind in ("[ｦ-ﾟ]", "https://", "```python", r"\|---", "[\U0001f300-\U0001faff]", "㎡", "[０-９（）]", r'\\": '):
        assert re.search(kind, text), kind


def test_no_text_line_or_sentence_is_in_two_of_calibration_verification_and_demo_corpus() -> None:
    sets = []
    for paths in (sorted(CALIBRATION.glob("*.jsonl")), sorted(VERIFICATION.glob("*.jsonl")), [CORPUS]):
        content = [row for path in paths for row in rows(path)]
        pairs = [(row["instruction"], row.get("input")) for row in content if "text" not in row]
        assert len(pairs) == len(set(pairs))
        values = [value for row in content for key, value in row.items() if key != "language"]
        lines = [line.strip() for value in values for line in value.split("\n")]
        lines += [sentence for line in lines for sentence in re.split(r"(?<=[。！？])|(?<=[.!?]) ", line)]
        sets.append({line for line in lines if len(line) >= 20} | {str(pair) for pair in pairs})
    assert len(sets) == 3
    assert all(sets)
    for one, other in combinations(sets, 2):
        assert not one & other


def test_a_pair_is_rendered_as_the_card_does_and_followed_by_its_output(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"instruction": "挨拶してください。", "output": "こんにちは。"}\n'
        '{"instruction": "訳してください。", "input": "Good\\nevening", "output": "こんばんは。"}\n'
        '{"instruction": "挨拶を。", "input": "", "output": "どうも。"}\n',
        encoding="utf-8",
    )
    assert read_texts(path) == [
        Text(
            "ja",
            "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\n\n"
            "### 指示:\n挨拶してください。\n\n### 応答:こんにちは。",
            True,
        ),
        Text(
            "ja",
            "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。\n\n"
            "### 指示:\n訳してください。\n\n### 入力:\nGood\nevening\n\n### 応答:\nこんばんは。",
            True,
        ),
        Text(
            "ja",
            "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\n\n"
            "### 指示:\n挨拶を。\n\n### 応答:どうも。",
            True,
        ),
    ]


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_texts_are_the_files_rows_in_order(name: str) -> None:
    texts = SETS[name]()
    folder = {"calibration": CALIBRATION, "verification": VERIFICATION}[name]
    assert texts == SETS[name]()
    expected = [*rows(folder / "ja.jsonl"), *rows(folder / "en.jsonl"), *rows(folder / "prose.jsonl")]
    assert [text.text.endswith(row.get("output") or row["text"]) for text, row in zip(texts, expected, strict=True)]
    assert [text.in_template for text in texts] == ["output" in row for row in expected]
    n_ja = len(rows(folder / "ja.jsonl"))
    assert {text.language for text in texts[:n_ja]} == {"ja"}


@pytest.mark.parametrize("name", SETS)
def test_the_language_of_every_shipped_text_would_also_be_told_from_its_letters(name: str, tmp_path: Path) -> None:
    folder = {"calibration": CALIBRATION, "verification": VERIFICATION}[name]
    for language in ("ja", "en"):
        bodies = [row["instruction"] for row in rows(folder / f"{language}.jsonl")]
        path = tmp_path / f"{language}.txt"
        path.write_text("\n\n".join(bodies), encoding="utf-8")
        assert Counter(text.language for text in read_texts(path)) == {language: len(bodies)}


def test_plain_text_is_cut_at_blank_lines_and_its_language_told(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(
        "\ufeff　一段落目。\r\n二行目。\r\n \t\r\n\r\n　二段落目はURL https://example.com だけ。\r\n\r\n"
        "Only one word, 東京, is Japanese here.\n\n12345\n\n".encode()
    )
    assert read_texts(path) == [
        Text("ja", "　一段落目。\n二行目。", False),
        Text("ja", "　二段落目はURL https://example.com だけ。", False),
        Text("en", "Only one word, 東京, is Japanese here.", False),
        Text("en", "12345", False),
    ]


def test_a_jsonl_file_may_name_languages_and_mix_pairs_and_prose(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        '{"language": "ja", "text": "ls -l"}\n\n{"text": "plain\u2028prose"}\n'
        '{"instruction": "Say it in Japanese.", "output": "はい", "language": "en"}\n',
        encoding="utf-8",
    )
    assert [(text.language, text.in_template) for text in read_texts(path)] == [
        ("ja", False),
        ("en", False),
        ("en", True),
    ]
    assert read_texts(path)[1].text == "plain\u2028prose"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "good"}\n{"text": "cut', "line 2: not JSON"),
        ("a.jsonl", b'["text"]', "line 1: not a JSON object"),
        ("a.json", b'[\n{"text": "one"}\n]', "line 1: not JSON"),
        ("a.jsonl", b'{"instruction": "x"}', "no 'output'"),
        ("a.jsonl", b'{"output": "x"}', "no 'instruction'"),
        ("a.jsonl", b'{"instruction": "x", "output": 3}', "'output' is not a string"),
        ("a.jsonl", b'{"instruction": " ", "output": "x"}', "'instruction' is empty"),
        ("a.jsonl", b'{"instruction": "x", "imput": "y", "output": "z"}', "unexpected field 'imput'"),
        ("a.jsonl", b'{"text": "x", "output": "z"}', "unexpected field 'output'"),
        ("a.jsonl", b'{"text": "x", "language": "fr"}', "the language is 'fr'"),
        ("a.jsonl", b'{"text": "x\\ud800"}', "surrogate"),
        ("a.jsonl", b"[" * 200_000, "line 1: not JSON"),
        ("a.jsonl", b"\n \n", "no text"),
        ("a.txt", b"", "no text"),
        ("a.txt", b"\n\n \n\t\n", "no text"),
        ("a.txt", "日本語".encode("cp932"), "not UTF-8"),
        ("a.txt", "text".encode("utf-16-le"), "not text"),
        ("a.txt", b"x" * (MAX_BYTES + 1), "larger than 16 MiB"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextsError, match=re.escape(message)) as caught:
        read_texts(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt", tmp_path / "missing.jsonl"):
        with pytest.raises(TextsError, match="cannot be read"):
            read_texts(path)


@pytest.mark.parametrize("content", [None, b"{}", b"not JSON"])
def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(tmp_path)


def test_the_ids_are_hugging_face_s_and_end_with_the_end_of_text(demo_checkpoint: Path, tokenizer: Tokenizer) -> None:
    reference = AutoTokenizer.from_pretrained(demo_checkpoint)
    texts = calibration() + verification()
    expected = [
        reference(text.text, add_special_tokens=False)["input_ids"] + ([END_OF_TEXT] if text.in_template else [])
        for text in texts
    ]
    assert sorted(sequences(texts, tokenizer, END_OF_TEXT, 2048)) == sorted(expected)


def test_the_runtime_reads_every_text_and_a_typed_end_of_text_with_the_same_ids(
    demo_f16: Path, tokenizer: Tokenizer
) -> None:
    texts = [*calibration(), *verification(), Text("en", "typed <|endoftext|> by e\u0301mile", False)]
    with loaded(demo_f16) as model:
        engines = engine_tokenizer.Tokenizer(model._model.vocab)
        for text in texts:
            (ids,) = sequences([text], tokenizer, END_OF_TEXT, 2048)
            assert ids[: len(ids) - text.in_template] == engines.encode(text.text)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("max_tokens", [None, 1000, 3001])
def test_every_prefix_is_balanced_over_languages_and_kinds(
    name: str, max_tokens: int | None, tokenizer: Tokenizer
) -> None:
    texts = SETS[name]()
    of_group = {one: sequences([t for t in texts if group(t) == one], tokenizer, END_OF_TEXT, 512) for one in GROUPS}
    total = {one: sum(map(len, made)) for one, made in of_group.items()}
    source = {tuple(ids): one for one, made in of_group.items() for ids in made}
    given = dict.fromkeys(GROUPS, 0)
    taken: dict[tuple[str, bool], list[list[int]]] = {one: [] for one in GROUPS}
    balanced = sequences(texts, tokenizer, END_OF_TEXT, 512, max_tokens)
    for ids in balanced if max_tokens is None else balanced[:-1]:
        one = source[tuple(ids)]
        assert given[one] == min(given[other] for other in GROUPS if given[other] < total[other])
        given[one] += len(ids)
        taken[one].append(ids)
    assert all(taken[one] == of_group[one][: len(taken[one])] for one in GROUPS)
    assert sum(map(len, balanced)) == (sum(total.values()) if max_tokens is None else max_tokens)


def test_sequences_are_cut_at_the_context_and_at_max_tokens(tokenizer: Tokenizer) -> None:
    pair, prose = Text("ja", "あいうえお" * 40, True), Text("en", "one two three " * 60, False)
    (whole,) = sequences([pair], tokenizer, END_OF_TEXT, 10_000)
    assert whole[-1] == END_OF_TEXT
    assert sequences([pair], tokenizer, END_OF_TEXT, 50) == [whole[:50]]
    (long,) = sequences([prose], tokenizer, END_OF_TEXT, 10_000)
    assert long == tokenizer.encode(prose.text).ids
    cut = sequences([prose], tokenizer, END_OF_TEXT, 50)
    assert [n for part in cut for n in part] == long[: sum(map(len, cut))]
    assert {len(part) for part in cut[:-1]} == {50}
    assert sum(map(len, cut)) >= len(long) - 1
    assert sequences([prose], tokenizer, END_OF_TEXT, 50, 77) == [long[:50], long[50:77]]
    assert sequences([prose], tokenizer, END_OF_TEXT, 50, 51) == [long[:50]]
    assert sequences([prose], tokenizer, END_OF_TEXT, 50, 1) == []
    assert sequences([Text("en", "a", False)], tokenizer, END_OF_TEXT, 50) == []


def test_the_description_changes_with_the_texts_and_counts_what_there_is(tokenizer: Tokenizer) -> None:
    texts = [Text("ja", "あいう", True), Text("en", "abcdefg", False)]
    made = sequences(texts, tokenizer, END_OF_TEXT, 100)
    description = describe(texts, made)
    lines = b'["ja", true, "\\u3042\\u3044\\u3046"]\n["en", false, "abcdefg"]\n'
    assert description == {
        "sha256": hashlib.sha256(lines).hexdigest(),
        "n_texts": 2,
        "characters": {"ja": 0.3, "en": 0.7},
        "n_sequences": 2,
        "n_tokens": sum(map(len, made)),
    }
    assert describe(texts[::-1], made)["sha256"] != description["sha256"]
    assert json.loads(json.dumps(description)) == description
    assert describe([], [])["characters"] == {"ja": 0.0, "en": 0.0}
