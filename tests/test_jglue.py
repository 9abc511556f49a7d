"""JGLUE's published files as texts to verify on: every question once, in the template, told apart in the report."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from convert.errors import TextsError
from convert.jglue import CHOOSE, held_out_texts, jcommonsenseqa, jsquad
from convert.texts import Text
from weblab_local.prompt import instruction_prompt

PARAGRAPH: dict[str, Any] = {
    "context": "都市 [SEP] 東京は日本の首都である。",
    "qas": [
        {"question": "日本の首都は?", "answers": [{"text": "東京"}, {"text": "東京は"}]},
        {"question": "東京はどこの首都?", "answers": [{"text": "日本"}]},
    ],
}
QUESTION = {"question": "雨の日にさすものは?", "label": 3} | {
    f"choice{i}": choice for i, choice in enumerate(["靴", "窓", "鍋", "傘", "机"])
}


def test_jsquad_gives_one_question_of_each_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "valid.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [PARAGRAPH]}, {"paragraphs": [PARAGRAPH] * 2}]}))
    expected = instruction_prompt("日本の首都は?", "東京は日本の首都である。") + "東京"
    assert jsquad(path) == [Text("ja", expected, in_template=True, origin="JSQuAD")] * 3


def test_jcommonsenseqa_gives_its_choices_and_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "valid.json"
    path.write_text(f"{json.dumps(QUESTION)}\n{json.dumps(QUESTION | {'label': 0})}\n")
    prompt = instruction_prompt(CHOOSE, "質問: 雨の日にさすものは?\n選択肢: 靴、窓、鍋、傘、机")
    assert [text.text for text in jcommonsenseqa(path)] == [prompt + "傘", prompt + "靴"]


@pytest.mark.parametrize("content", ["", "{}", '{"data": [{"paragraphs": [{"context": "x", "qas": []}]}]}', "[1]"])
def test_something_else_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(TextsError, match=r"other\.json is not JSQuAD"):
        jsquad(path)


def test_without_test_data_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEBLAB_TEST_DATA", raising=False)
    assert held_out_texts() == []
    monkeypatch.setenv("WEBLAB_TEST_DATA", str(tmp_path))
    assert held_out_texts() == []


def test_the_published_files_are_read_whole(test_data: Path) -> None:
    folder = test_data / "jglue"
    articles = json.loads((folder / "jsquad-v1.3" / "valid-v1.3.json").read_text(encoding="utf-8"))["data"]
    questions = (folder / "jcommonsenseqa-v1.3" / "valid-v1.3.json").read_text(encoding="utf-8").splitlines()
    found = held_out_texts()
    n_paragraphs = sum(len(article["paragraphs"]) for article in articles)
    assert Counter(text.origin for text in found) == {"JSQuAD": n_paragraphs, "JCommonsenseQA": len(questions)}
    assert not any("[SEP]" in text.text for text in found)
