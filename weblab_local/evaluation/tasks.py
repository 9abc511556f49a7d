"""The eight tasks of the model card's benchmark, each as it is asked there.

Source: Stability-AI/lm-evaluation-harness at commit 2f1583c, prompt template version 0.3. How a prompt is made of these
is in `prompts`, how an answer is judged in `metrics`, where the questions come from in `data`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Doc = Mapping[str, Any]
"""A question as its data set has it."""

Metric = Literal["acc", "exact_match", "rouge2"]
CountTokens = Callable[[str], int]
MGSM_TOKENS = 256
SUMMARY_MARGIN = 10
JGLUE = "https://github.com/yahoojapan/JGLUE"


def no_text(_: Doc) -> str:
    """What a task without a template has for instruction and input."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, and how. A task has `choices` to compare, or else its answer is generated, up to a line's end.

    version       as the fork numbers it
    shots         examples before a question
    metric        the one that the card gives
    hub           repository and configuration on the Hub
    published     where the files can be had without it
    questions     the split that is asked; examples are from "train"
    instruction   of the template, as is `input`; `answer` is what an example shows
    example_input where an example's input is not that of a question
    choices       texts to compare by log-likelihood, and `label`, the index of the right one
    golds         right answers to compare a generated one with
    max_tokens    how long a generated answer may be
    gap           between the instruction and the next heading
    templated     False: no template at all, the choices stand alone
    shortened     how a prompt that does not fit loses text before it is cut off at the left
    """

    name: str
    version: str
    shots: int
    metric: Metric
    hub: tuple[str, str | None]
    published: str
    questions: Literal["validation", "test"] = "validation"
    instruction: Callable[[Doc], str] = no_text
    input: Callable[[Doc], str] = no_text
    answer: Callable[[Doc], str] = no_text
    example_input: Callable[[Doc], str] | None = None
    choices: Callable[[Doc], Sequence[str]] | None = None
    label: Callable[[Doc], int] | None = None
    golds: Callable[[Doc], Sequence[str]] | None = None
    max_tokens: Callable[[Doc, CountTokens], int] | None = None
    gap: str = "\n\n"
    templated: bool = True
    shortened: Literal["", "examples", "articles"] = ""


def _index(value: int | str, names: Sequence[str]) -> int:
    """A label's index: the Hub has numbers, the published files of JNLI and MARC-ja names."""
    return names.index(value) if isinstance(value, str) else value


def _five_choices(doc: Doc) -> list[str]:
    return [doc[f"choice{number}"] for number in range(5)]


JCOMMONSENSEQA = Task(
    name="jcommonsenseqa",
    version="1.1",
    shots=3,
    metric="acc",
    hub=("Rakuten/JGLUE", "JCommonsenseQA"),
    published=JGLUE,
    instruction=lambda doc: (
        "与えられた選択肢の中から、最適な答えを選んでください。出力は以下から選択してください：\n"
        + "\n".join(f"- {choice}" for choice in _five_choices(doc))
    ),
    input=lambda doc: doc["question"],
    answer=lambda doc: _five_choices(doc)[doc["label"]],
    choices=_five_choices,
    label=lambda doc: doc["label"],
)

RELATIONS = ("entailment", "contradiction", "neutral")

JNLI = Task(
    name="jnli",
    version="1.1",
    shots=3,
    metric="acc",
    hub=("Rakuten/JGLUE", "JNLI"),
    published=JGLUE,
    instruction=lambda _: (
        "与えられた前提と仮説の関係を回答してください。\n\n出力は以下から選択してください：\n" + "\n".join(RELATIONS)
    ),
    input=lambda doc: f"前提：{doc['sentence1']}\n仮説：{doc['sentence2']}",
    answer=lambda doc: RELATIONS[_index(doc["label"], RELATIONS)],
    choices=lambda _: RELATIONS,
    label=lambda doc: _index(doc["label"], RELATIONS),
)

SENTIMENTS = ("positive", "negative")
SENTIMENTS_JA = ("ポジティブ", "ネガティブ")

MARC_JA = Task(
    name="marc_ja",
    version="1.1",
    shots=3,
    metric="acc",
    hub=("Rakuten/JGLUE", "MARC-ja"),
    published=JGLUE,
    instruction=lambda _: "以下の製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。",
    input=lambda doc: doc["sentence"],
    answer=lambda doc: SENTIMENTS_JA[_index(doc["label"], SENTIMENTS)],
    choices=lambda _: SENTIMENTS_JA,
    label=lambda doc: _index(doc["label"], SENTIMENTS),
)


def _extraction_input(context: str, question: str) -> str:
    return f"文脈：{context}\n質問：{question}"


def _longest_gold(doc: Doc, count: CountTokens) -> int:
    return max(map(count, doc["answers"]["text"]))


JSQUAD = Task(
    name="jsquad",
    version="1.1",
    shots=2,
    metric="exact_match",
    hub=("Rakuten/JGLUE", "JSQuAD"),
    published=JGLUE,
    instruction=lambda _: "与えられた文脈から、質問に対する答えを抜き出してください。",
    input=lambda doc: _extraction_input(doc["context"].split("[SEP]")[-1].strip(), doc["question"]),
    answer=lambda doc: doc["answers"]["text"][0],
    golds=lambda doc: doc["answers"]["text"],
    max_tokens=_longest_gold,
)


def _answering_context(doc: Doc) -> str:
    """The first of the contexts that holds the answer; where none does, the first."""
    texts: Sequence[str] = doc["ctxs"]["text"]
    holds: Sequence[bool] = doc["ctxs"]["has_answer"]
    return next((text for text, answer in zip(texts, holds, strict=True) if answer), texts[0])


JAQKET_V2 = Task(
    name="jaqket_v2",
    version="0.2",
    shots=1,
    metric="exact_match",
    hub=("kumapo/JAQKET", "v2.0"),
    published="https://sites.google.com/view/project-aio/dataset",
    instruction=lambda _: "与えられた文脈から、質問に対する答えを抜き出してください。",
    input=lambda doc: _extraction_input("\n".join(doc["ctxs"]["text"][:5]), doc["question"]),
    example_input=lambda doc: _extraction_input(_answering_context(doc), doc["question"]),
    answer=lambda doc: doc["answers"]["text"][0],
    golds=lambda doc: doc["answers"]["text"],
    max_tokens=_longest_gold,
)

XLSUM_JA = Task(
    name="xlsum_ja",
    version="1.0",
    shots=1,
    metric="rouge2",
    hub=("mkshing/xlsum_ja", None),
    published="https://github.com/csebuetnlp/xl-sum",
    questions="test",
    instruction=lambda _: "与えられたニュース記事を要約してください。",
    input=lambda doc: f"ニュース記事:{doc['text']}",
    answer=lambda doc: doc["summary"],
    golds=lambda doc: [doc["summary"]],
    max_tokens=lambda doc, count: count(doc["summary"]) + SUMMARY_MARGIN,
    shortened="articles",
)

XWINOGRAD_JA = Task(
    name="xwinograd_ja",
    version="1.0",
    shots=0,
    metric="acc",
    hub=("polm-stability/xwinograd-ja", None),
    published="https://huggingface.co/datasets/polm-stability/xwinograd-ja",
    questions="test",
    choices=lambda doc: [doc["sentence1"], doc["sentence2"]],
    label=lambda doc: int(doc["answer"]) - 1,
    templated=False,
)

MGSM = Task(
    name="mgsm",
    version="1.0",
    shots=5,
    metric="acc",
    hub=("juletxara/mgsm", "ja"),
    published="https://github.com/google-research/url-nlp",
    questions="test",
    instruction=lambda _: "与えられた問題に対して、ステップごとに答えを導き出してください。",
    input=lambda doc: doc["question"].replace("問題：", ""),
    answer=lambda doc: doc["answer"].replace("ステップごとの答え：", ""),
    golds=lambda doc: [str(doc["answer_number"])],
    max_tokens=lambda *_: MGSM_TOKENS,
    gap="",
    shortened="examples",
)

TASKS: Mapping[str, Task] = {
    task.name: task for task in (JCOMMONSENSEQA, JNLI, MARC_JA, JSQUAD, JAQKET_V2, XLSUM_JA, XWINOGRAD_JA, MGSM)
}

Suite = Literal["jglue-4", "jglue-8"]
SUITES: Mapping[Suite, Sequence[str]] = {"jglue-4": tuple(TASKS)[:4], "jglue-8": tuple(TASKS)}
