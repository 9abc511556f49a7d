"""Small data sets made for the tests: six examples and three questions of each task, in JGLUE's published layout."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weblab_local.evaluation.data import Splits

Record = dict[str, Any]


def jcommonsenseqa(kind: str, n: int) -> Record:
    choices = {f"choice{i}": f"{kind}{n}の答え{i}" for i in range(5)}
    return {"q_id": n, "question": f"{kind}{n}はどれ？", **choices, "label": n % 5}


def jnli(kind: str, n: int) -> Record:
    label = ("entailment", "contradiction", "neutral")[n % 3]
    return {
        "sentence_pair_id": str(n),
        "sentence1": f"{kind}{n}の前。",
        "sentence2": f"{kind}{n}の後。",
        "label": label,
    }


def marc_ja(kind: str, n: int) -> Record:
    return {"review_id": f"R{n}", "sentence": f"{kind}{n}を買いました。", "label": ("positive", "negative")[n % 2]}


def jsquad(kind: str, n: int) -> Record:
    return {
        "id": f"a{n}p0q0",
        "title": f"{kind}{n}",
        "context": f"{kind}{n} [SEP] {kind}{n}は町である。人口は{n}万人。",
        "question": f"{kind}{n}の人口は？",
        "answers": {"text": [f"{n}万人", f"{n}万", f"{n}万人"]},
    }


def jaqket_v2(kind: str, n: int) -> Record:
    return {
        "qid": f"Q{n}",
        "question": f"{kind}{n}の名前は？",
        "answers": {"text": [f"名{n}"], "answer_start": [0]},
        "ctxs": {
            "text": [f"{kind}{n}の文{i}。" for i in range(5)],
            "has_answer": [i == 1 + n % 3 for i in range(5)],
        },
    }


def xlsum_ja(kind: str, n: int) -> Record:
    return {"id": str(n), "text": f"{kind}{n}が起きた。" * 2 + "続く。", "summary": f"{kind}{n}の話。"}


def xwinograd_ja(kind: str, n: int) -> Record:
    return {"sentence1": f"{kind}{n}は甲である。", "sentence2": f"{kind}{n}は乙である。", "answer": str(1 + n % 2)}


def mgsm(kind: str, n: int) -> Record:
    if kind == "例":
        return {
            "question": f"問題：例{n}はいくつ？",
            "answer": f"ステップごとの答え：例{n}です。答えは{n}です。",
            "answer_number": n,
        }
    return {"question": f"{kind}{n}はいくつ？", "answer": None, "answer_number": n}


MAKERS = (jcommonsenseqa, jnli, marc_ja, jsquad, jaqket_v2, xlsum_ja, xwinograd_ja, mgsm)
DATA: Mapping[str, Splits] = {
    make.__name__: Splits([make("例", n) for n in range(6)], [make("問", n) for n in range(3)]) for make in MAKERS
}
TESTED_ON_TEST = ("xlsum_ja", "xwinograd_ja", "mgsm")


def squad_articles(docs: Sequence[Record]) -> Record:
    """Flat questions as SQuAD's nested JSON."""
    return {
        "data": [
            {
                "title": doc["title"],
                "paragraphs": [
                    {
                        "context": doc["context"],
                        "qas": [
                            {
                                "id": doc["id"],
                                "question": doc["question"],
                                "answers": [{"text": text, "answer_start": 0} for text in doc["answers"]["text"]],
                                "is_impossible": False,
                            }
                        ],
                    }
                ],
            }
            for doc in docs
        ]
    }


def write_data(folder: Path, names: Sequence[str] = tuple(DATA), version: str = "v1.3") -> Path:
    """The data of the tasks `names` as files in `folder`."""
    for name in names:
        asked = "test" if name in TESTED_ON_TEST else "valid"
        for split, docs in zip(("train", asked), DATA[name], strict=True):
            path = folder / f"{name}-{version}" / f"{split}-{version}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            records = [squad_articles(list(docs))] if name == "jsquad" else docs  # type: ignore[arg-type]
            path.write_text("".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in records), encoding="utf-8")
    return folder
