"""JGLUE's published files as texts to verify on: in the template, worded as the benchmark is, told apart by origin."""

import json
from collections import Counter
from pathlib import Path

import pytest

from convert.reference.jglue import MAX_QUESTIONS, held_out_texts
from convert.reference.texts import Text
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.errors import EvaluationError

QUESTION = {"question": "雨の日にさすものは?", "label": 3} | {
    f"choice{number}": choice for number, choice in enumerate(["靴", "窓", "鍋", "傘", "机"])
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEBLAB_TEST_DATA", str(tmp_path))
    folder = tmp_path / "jglue" / "jcommonsenseqa-v1.3"
    folder.mkdir(parents=True)
    return folder


def test_a_question_comes_with_its_choices_and_the_right_one(folder: Path) -> None:
    (folder / "train-v1.3.json").write_text(f"{json.dumps(QUESTION)}\n" * 3)
    (folder / "valid-v1.3.json").write_text(json.dumps(QUESTION))
    instruction = "与えられた選択肢の中から、最適な答えを選んでください。出力は以下から選択してください：\n"
    prompt = instruction_prompt(instruction + "- 靴\n- 窓\n- 鍋\n- 傘\n- 机", "雨の日にさすものは?")
    assert held_out_texts() == [Text("ja", prompt + "傘", in_template=True, origin="JCommonsenseQA")]


def test_damaged_data_are_refused(folder: Path) -> None:
    for split in ("train", "valid"):
        (folder / f"{split}-v1.3.json").write_text("{}\n" * 3)
    with pytest.raises(EvaluationError, match="jcommonsenseqa"):
        held_out_texts()


def test_without_test_data_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEBLAB_TEST_DATA", raising=False)
    assert held_out_texts() == []
    monkeypatch.setenv("WEBLAB_TEST_DATA", str(tmp_path))
    assert held_out_texts() == []


@pytest.mark.usefixtures("test_data")
def test_the_published_files_give_some_of_each() -> None:
    found = held_out_texts()
    assert Counter(text.origin for text in found) == {"JSQuAD": MAX_QUESTIONS, "JCommonsenseQA": MAX_QUESTIONS}
    assert not any("[SEP]" in text.text for text in found)
