"""Questions from files in JGLUE's layout and from `datasets`; what is missing or damaged is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.support import DATA, write_data
from weblab_local.errors import EvaluationError
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.prompts import draw_questions
from weblab_local.evaluation.tasks import TASKS

ALL = list(TASKS.values())


def test_files_in_the_published_layout_give_the_questions_of_the_data(small_data: Path) -> None:
    found = load_questions(ALL, small_data)
    assert list(found) == list(TASKS)
    for name, questions in found.items():
        expected = draw_questions(TASKS[name], *DATA[name])
        assert [question.doc["question"] for question in questions if name == "jsquad"] == [
            question.doc["question"] for question in expected if name == "jsquad"
        ]
        if name not in ("jsquad", "xwinograd_ja"):
            assert questions == expected


def test_squads_nested_articles_become_questions(small_data: Path) -> None:
    (first, *_rest) = load_questions([TASKS["jsquad"]], small_data)["jsquad"]
    assert first.doc == {
        "id": "a1p0q0",
        "title": "問1",
        "context": "問1 [SEP] 問1は町である。人口は1万人。",
        "question": "問1の人口は？",
        "answers": {"text": ["1万人", "1万", "1万人"]},
    }


def test_the_newest_version_counts(tmp_path: Path) -> None:
    write_data(tmp_path, ["jnli"], "v1.3")
    old = tmp_path / "jnli-v1.1"
    old.mkdir()
    for split in ("train", "valid"):
        (old / f"{split}-v1.1.json").write_text("no JSON")
    assert len(load_questions([TASKS["jnli"]], tmp_path)["jnli"]) == 3
    write_data(tmp_path, ["jnli"], "v1.10")
    (tmp_path / "jnli-v1.3" / "valid-v1.3.json").write_text("no JSON")
    assert len(load_questions([TASKS["jnli"]], tmp_path)["jnli"]) == 3


def test_everything_that_is_missing_is_named_at_once_with_what_is_there(tmp_path: Path) -> None:
    write_data(tmp_path, ["jnli", "mgsm"])
    (tmp_path / "mgsm-v1.3" / "train-v1.3.json").unlink()
    with pytest.raises(EvaluationError) as raised:
        load_questions([TASKS[name] for name in ("jcommonsenseqa", "jnli", "mgsm")], tmp_path)
    assert "jcommonsenseqa-v*/valid-v*.json, mgsm-v*/train-v*.json are missing" in raised.value.message
    assert raised.value.remedy.endswith("--tasks jnli")


def test_a_folder_that_is_not_there_has_no_data(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="jnli"):
        load_questions([TASKS["jnli"]], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"label": "neutral", "sentence1": "a"}\n', "sentence2"),
        ('{"label": "maybe", "sentence1": "a", "sentence2": "b"}\n', "not in"),
        ("{not JSON\n", "after 0 records"),
        ('["a list"]\n', "list indices"),
        ("", "not in the layout"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    write_data(tmp_path, ["jnli"])
    (tmp_path / "jnli-v1.3" / "train-v1.3.json").write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=reason):
        load_questions([TASKS["jnli"]], tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_the_hubs_client_gives_the_same_questions(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, name: str
) -> None:
    """`datasets` reads a folder as it reads a repository."""
    folder, task = tmp_path_factory.mktemp("hub"), TASKS[name]
    for split, docs in zip(("train", task.questions), DATA[name], strict=True):
        lines = (json.dumps(doc, ensure_ascii=False) for doc in docs)
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    local = replace(task, hub=(str(folder), None))
    (from_hub,) = load_questions([local], None).values()
    (from_files,) = load_questions([task], small_data).values()
    for ours, theirs in zip(from_hub, from_files, strict=True):
        assert task.input(ours.doc) == task.input(theirs.doc)
        assert [task.answer(doc) for doc in ours.examples] == [task.answer(doc) for doc in theirs.examples]


def test_a_hub_that_is_out_of_reach_is_named_with_the_remedy() -> None:
    with pytest.raises(EvaluationError, match="Rakuten/JGLUE on the Hub") as raised:
        load_questions([TASKS["jnli"]], None)
    assert "--data" in raised.value.remedy
