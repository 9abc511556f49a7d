"""Questions from files in JGLUE's layout and from `datasets`; what is missing or damaged is named."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.support import DATA, write_data
from tests.support.hub_server import HubServer, environment
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


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The stand-in Hub."""
    with HubServer() as hub:
        yield hub


def from_hub(hub: HubServer, name: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """What a process prints that loads a task's questions from there: `datasets` reads the address when imported."""
    program = (
        "import sys\n"
        "from weblab_local.errors import EvaluationError\n"
        "from weblab_local.evaluation.data import load_questions\n"
        "from weblab_local.evaluation.tasks import TASKS\n"
        "try: print(sorted(q.doc['sentence1'] for q in load_questions([TASKS[sys.argv[1]]], None)[sys.argv[1]]))\n"
        "except EvaluationError as error: sys.exit(f'{error.message}|{error.remedy}')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, name], env=environment(hub, home), capture_output=True, text=True, check=False
    )


def script_only(folder: Path) -> Path:
    """A repository as data sets used to be: Python that fetches the data from elsewhere."""
    folder.mkdir()
    (folder / "JGLUE.py").write_text("import datasets\n")
    return folder


def test_a_repository_with_a_script_alone_leads_to_the_published_files(hub: HubServer, tmp_path: Path) -> None:
    hub.add("Rakuten/JGLUE", script_only(tmp_path / "script"))
    done = from_hub(hub, "jnli", tmp_path / "home")
    message, remedy = done.stderr.splitlines()[-1].split("|")
    assert "jnli cannot be loaded from Rakuten/JGLUE on the Hub: Dataset scripts are no longer supported" in message
    assert "--data FOLDER" in remedy
    assert "https://github.com/yahoojapan/JGLUE" in remedy
    assert "network" not in remedy


def test_what_the_hub_has_converted_of_a_script_is_taken(hub: HubServer, tmp_path: Path) -> None:
    from datasets import Dataset

    for split, docs in zip(("train", "validation"), DATA["jnli"], strict=True):
        Dataset.from_list(list(docs)).to_parquet(tmp_path / "parquet" / "JNLI" / split / "0000.parquet")
    converted = {"refs/convert/parquet": tmp_path / "parquet"}
    hub.add("Rakuten/JGLUE", script_only(tmp_path / "script"), revisions=converted)
    done = from_hub(hub, "jnli", tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(doc["sentence1"] for doc in DATA["jnli"][1]))


def test_a_repository_that_holds_data_is_loaded(hub: HubServer, tmp_path: Path) -> None:
    from datasets import Dataset

    for split, docs in zip(("train", "validation"), DATA["jnli"], strict=True):
        Dataset.from_list(list(docs)).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    config = "configs:\n- config_name: JNLI\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: {split}-*\n" for split in ("train", "validation")
    )
    (tmp_path / "data" / "README.md").write_text(f"---\n{config}---\n")
    hub.add("Rakuten/JGLUE", tmp_path / "data")
    done = from_hub(hub, "jnli", tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(doc["sentence1"] for doc in DATA["jnli"][1]))
