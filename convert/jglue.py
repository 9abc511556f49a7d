"""JGLUE's JSQuAD and JCommonsenseQA as texts in the model's template, read from the files that JGLUE publishes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from convert.errors import TextsError
from convert.texts import Text
from weblab_local.prompt import instruction_prompt

CHOOSE = "質問への答えとして最も適切なものを、選択肢から一つ選んでください。"
_N_CHOICES = 5


def jsquad(path: Path) -> list[Text]:
    """The first question on each paragraph, with the paragraph as input and its first answer. Raises TextsError."""
    return _read(path, "JSQuAD", _jsquad)


def jcommonsenseqa(path: Path) -> list[Text]:
    """Every question, with its choices as input and the right one as answer. Raises TextsError."""
    return _read(path, "JCommonsenseQA", _jcommonsenseqa)


def held_out_texts() -> list[Text]:
    """The validation sets in `jglue/` of the folder that WEBLAB_TEST_DATA names, as far as they are there."""
    folder = Path(os.environ.get("WEBLAB_TEST_DATA", ""), "jglue")
    if "WEBLAB_TEST_DATA" not in os.environ:
        return []
    files = ((jsquad, "jsquad-v1.3"), (jcommonsenseqa, "jcommonsenseqa-v1.3"))
    paths = [(read, folder / name / "valid-v1.3.json") for read, name in files]
    return [text for read, path in paths if path.is_file() for text in read(path)]


def _read(path: Path, origin: str, parse: Callable[[str], list[str]]) -> list[Text]:
    try:
        texts = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TextsError(f"{path} is not {origin} as JGLUE publishes it: {error!r}.", "Download it again.") from None
    return [Text("ja", text, in_template=True, origin=origin) for text in texts]


def _jsquad(content: str) -> list[str]:
    texts = []
    for article in json.loads(content)["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"].rpartition("[SEP]")[2].strip()  # before it stands the article's title
            asked = paragraph["qas"][0]
            texts.append(instruction_prompt(asked["question"], context) + asked["answers"][0]["text"])
    return texts


def _jcommonsenseqa(content: str) -> list[str]:
    texts = []
    for row in map(json.loads, content.splitlines()):
        choices = [row[f"choice{number}"] for number in range(_N_CHOICES)]
        context = f"質問: {row['question']}\n選択肢: {'、'.join(choices)}"
        texts.append(instruction_prompt(CHOOSE, context) + choices[row["label"]])
    return texts
