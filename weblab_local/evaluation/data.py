"""Where a task's questions and examples come from: JGLUE's published files in a folder, or the Hub.

A folder has JGLUE's own layout, `<task>-v<version>/<train or valid or test>-v<version>.json`, of each task the newest
version that is there: JSON lines, JSQuAD in SQuAD's JSON. The tasks beside JGLUE's are looked for in the same way, as
JSON lines with the fields that the Hub's data sets have.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from weblab_local.errors import EvaluationError
from weblab_local.evaluation.prompts import Question, draw_questions
from weblab_local.evaluation.tasks import Doc, Task
from weblab_local.i18n import _

_NOT_THE_LAYOUT = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What Python says when a record is not what it should be."""


NO_SCRIPTS = "Dataset scripts are no longer supported"
"""What `datasets` says from version 4 on of a repository that has Python in place of data."""

CONVERTED = "refs/convert/parquet"
"""The branch on which the Hub keeps such a repository's data as Parquet, each configuration in a folder."""


class Splits(NamedTuple):
    """Records of a task: what examples are drawn from, and what is asked."""

    training: Sequence[Doc]
    asked: Sequence[Doc]


def load_questions(tasks: Sequence[Task], folder: Path | None) -> dict[str, list[Question]]:
    """All questions of the `tasks`, in their order, from the `folder` or, without one, from the Hub.

    Raises EvaluationError that names everything that is not there, or what is damaged.
    """
    if folder is not None:
        _require_files(tasks, folder)
    found = {}
    for task in tasks:
        splits = _from_hub(task) if folder is None else _from_folder(task, folder)
        where = task.hub[0] if folder is None else str(folder)
        try:
            for doc in splits.training:
                _use(task, doc)
                task.answer(doc)
            for doc in splits.asked:
                _use(task, doc)
            found[task.name] = draw_questions(task, *splits)
        except _NOT_THE_LAYOUT as error:
            raise EvaluationError(
                _("The data of {task} in {where} are not in the layout of its data set: {error!r}.").format(
                    task=task.name, where=where, error=error
                ),
                _("Get it again from where it is published."),
            ) from None
    return found


def _use(task: Task, doc: Doc) -> None:
    """Read all that a task reads of a question."""
    for read in (task.instruction, task.input, task.example_input, task.choices, task.label, task.golds):
        if read is not None:
            read(doc)


def _split_names(task: Task) -> list[str]:
    return [*(["train"] if task.shots else []), task.questions]


def _require_files(tasks: Sequence[Task], folder: Path) -> None:
    missing = {
        task.name: f"{task.name}-v*/{split.replace('validation', 'valid')}-v*.json"
        for task in tasks
        for split in _split_names(task)
        if _file(task, folder, split) is None
    }
    if not missing:
        return
    remedies = [_("Put them there as JGLUE publishes them, or leave --data out to get them from the Hub.")]
    if there := [task.name for task in tasks if task.name not in missing]:
        remedies.append(_("Or evaluate what is there: --tasks {names}").format(names=",".join(there)))
    raise EvaluationError(
        _("{folder} has no data for {tasks}: {files} are missing.").format(
            folder=folder, tasks=", ".join(missing), files=", ".join(missing.values())
        ),
        "\n".join(remedies),
    )


def _file(task: Task, folder: Path, split: str) -> Path | None:
    """The file of a split, of the newest version that has it."""
    name = split.replace("validation", "valid")
    found = folder.glob(f"{task.name}-v*/{name}-v*.json")
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)], default=None)


def _from_folder(task: Task, folder: Path) -> Splits:
    files = [_file(task, folder, split) for split in _split_names(task)]
    *training, asked = [_records(path) for path in files if path is not None]
    return Splits(training[0] if training else (), asked)


def _records(path: Path) -> list[Doc]:
    found: list[Doc] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for record in map(json.loads, filter(str.strip, lines)):
                found += _questions_of_articles(record["data"]) if "data" in record else [record]
    except (OSError, *_NOT_THE_LAYOUT) as error:
        raise EvaluationError(
            _("{path} cannot be read after {n} records: {error}.").format(path=path, n=len(found), error=error),
            _("Get it again from where it is published."),
        ) from None
    return found


def _questions_of_articles(articles: Sequence[dict[str, Any]]) -> Iterator[Doc]:
    """SQuAD's nested form, flat as the Hub has it."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "id": question["id"],
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {"text": [answer["text"] for answer in question["answers"]]},
                }


def _from_hub(task: Task) -> Splits:
    """The data as the repository holds them, or, where it holds a script, as the Hub has converted them."""
    repository, configuration = task.hub
    script: Exception | None = None
    try:
        try:
            return _splits(task, repository, configuration)
        except RuntimeError as error:
            if NO_SCRIPTS not in str(error):
                raise
            script = error
            return _splits(task, repository, data_dir=configuration or "default", revision=CONVERTED)
    except Exception as error:  # datasets, the Hub's client and the network have errors of their own
        reason = " ".join(str(script or error).split())
        if script is None:
            remedy = _(
                "Check the network, or give a folder with the published files: --data FOLDER. They are at {published}"
            )
        else:
            remedy = _("Give a folder with the published files: --data FOLDER. They are at {published}")
        raise EvaluationError(
            _("The data of {task} cannot be loaded from {repository} on the Hub: {reason}").format(
                task=task.name, repository=repository, reason=reason or type(error).__name__
            ),
            remedy.format(published=task.published),
        ) from None


def _splits(task: Task, repository: str, configuration: str | None = None, **options: str) -> Splits:
    from datasets import load_dataset

    *training, asked = [
        list(load_dataset(repository, configuration, split=split, **options)) for split in _split_names(task)
    ]
    return Splits(training[0] if training else (), asked)
