"""Prompts of template 0.3, letter for letter, as the card's benchmark is specified; the data are those of `support`.

random.Random(42) shuffles three questions to 1, 0, 2 and then draws of six examples: three each time 0 2 1, 1 5 0 and
5 4 0; two 0 2, 1 5, 1 0; one 0, 5, 2; five 0 2 1 5 4, 5 0 4 2 1, 0 5 4 3 2.
"""

import random
from collections.abc import Sequence

import pytest

from tests.evaluation.support import DATA
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.evaluation.prompts import Question, draw_questions, prompt_text
from weblab_local.evaluation.tasks import SUITES, TASKS

DESCRIPTION = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。\n\n"

JCOMMONSENSEQA = (
    "### 指示:\n与えられた選択肢の中から、最適な答えを選んでください。出力は以下から選択してください：\n"
    "- 例0の答え0\n- 例0の答え1\n- 例0の答え2\n- 例0の答え3\n- 例0の答え4\n\n"
    "### 入力:\n例0はどれ？\n\n### 応答:\n例0の答え0\n\n"
    "### 指示:\n与えられた選択肢の中から、最適な答えを選んでください。出力は以下から選択してください：\n"
    "- 例2の答え0\n- 例2の答え1\n- 例2の答え2\n- 例2の答え3\n- 例2の答え4\n\n"
    "### 入力:\n例2はどれ？\n\n### 応答:\n例2の答え2\n\n"
    "### 指示:\n与えられた選択肢の中から、最適な答えを選んでください。出力は以下から選択してください：\n"
    "- 例1の答え0\n- 例1の答え1\n- 例1の答え2\n- 例1の答え3\n- 例1の答え4\n\n"
    "### 入力:\n例1はどれ？\n\n### 応答:\n例1の答え1\n\n"
    "### 指示:\n与えられた選択肢の中から、最適な答えを選んでください。出力は以下から選択してください：\n"
    "- 問1の答え0\n- 問1の答え1\n- 問1の答え2\n- 問1の答え3\n- 問1の答え4\n\n"
    "### 入力:\n問1はどれ？\n\n### 応答:\n"
)

JNLI = (
    "### 指示:\n与えられた前提と仮説の関係を回答してください。\n\n"
    "出力は以下から選択してください：\nentailment\ncontradiction\nneutral\n\n"
    "### 入力:\n前提：例0の前。\n仮説：例0の後。\n\n### 応答:\nentailment\n\n"
    "### 指示:\n与えられた前提と仮説の関係を回答してください。\n\n"
    "出力は以下から選択してください：\nentailment\ncontradiction\nneutral\n\n"
    "### 入力:\n前提：例2の前。\n仮説：例2の後。\n\n### 応答:\nneutral\n\n"
    "### 指示:\n与えられた前提と仮説の関係を回答してください。\n\n"
    "出力は以下から選択してください：\nentailment\ncontradiction\nneutral\n\n"
    "### 入力:\n前提：例1の前。\n仮説：例1の後。\n\n### 応答:\ncontradiction\n\n"
    "### 指示:\n与えられた前提と仮説の関係を回答してください。\n\n"
    "出力は以下から選択してください：\nentailment\ncontradiction\nneutral\n\n"
    "### 入力:\n前提：問1の前。\n仮説：問1の後。\n\n### 応答:\n"
)

MARC_JA = (
    "### 指示:\n以下の製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。\n\n"
    "### 入力:\n例0を買いました。\n\n### 応答:\nポジティブ\n\n"
    "### 指示:\n以下の製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。\n\n"
    "### 入力:\n例2を買いました。\n\n### 応答:\nポジティブ\n\n"
    "### 指示:\n以下の製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。\n\n"
    "### 入力:\n例1を買いました。\n\n### 応答:\nネガティブ\n\n"
    "### 指示:\n以下の製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。\n\n"
    "### 入力:\n問1を買いました。\n\n### 応答:\n"
)

JSQUAD = (
    "### 指示:\n与えられた文脈から、質問に対する答えを抜き出してください。\n\n"
    "### 入力:\n文脈：例0は町である。人口は0万人。\n質問：例0の人口は？\n\n### 応答:\n0万人\n\n"
    "### 指示:\n与えられた文脈から、質問に対する答えを抜き出してください。\n\n"
    "### 入力:\n文脈：例2は町である。人口は2万人。\n質問：例2の人口は？\n\n### 応答:\n2万人\n\n"
    "### 指示:\n与えられた文脈から、質問に対する答えを抜き出してください。\n\n"
    "### 入力:\n文脈：問1は町である。人口は1万人。\n質問：問1の人口は？\n\n### 応答:\n"
)

JAQKET_V2 = (
    "### 指示:\n与えられた文脈から、質問に対する答えを抜き出してください。\n\n"
    "### 入力:\n文脈：例0の文1。\n質問：例0の名前は？\n\n### 応答:\n名0\n\n"
    "### 指示:\n与えられた文脈から、質問に対する答えを抜き出してください。\n\n"
    "### 入力:\n文脈：問1の文0。\n問1の文1。\n問1の文2。\n問1の文3。\n問1の文4。\n質問：問1の名前は？\n\n### 応答:\n"
)

XLSUM_JA = (
    "### 指示:\n与えられたニュース記事を要約してください。\n\n"
    "### 入力:\nニュース記事:例0が起きた。例0が起きた。続く。\n\n### 応答:\n例0の話。\n\n"
    "### 指示:\n与えられたニュース記事を要約してください。\n\n"
    "### 入力:\nニュース記事:問1が起きた。問1が起きた。続く。\n\n### 応答:\n"
)

MGSM = (
    "### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。### 入力:\n例0はいくつ？\n\n"
    "### 応答:\n例0です。答えは0です。\n\n"
    "### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。### 入力:\n例2はいくつ？\n\n"
    "### 応答:\n例2です。答えは2です。\n\n"
    "### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。### 入力:\n例1はいくつ？\n\n"
    "### 応答:\n例1です。答えは1です。\n\n"
    "### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。### 入力:\n例5はいくつ？\n\n"
    "### 応答:\n例5です。答えは5です。\n\n"
    "### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。### 入力:\n例4はいくつ？\n\n"
    "### 応答:\n例4です。答えは4です。\n\n"
    "### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。### 入力:\n問1はいくつ？\n\n"
    "### 応答:\n"
)

EXPECTED = {
    "jcommonsenseqa": DESCRIPTION + JCOMMONSENSEQA,
    "jnli": DESCRIPTION + JNLI,
    "marc_ja": DESCRIPTION + MARC_JA,
    "jsquad": DESCRIPTION + JSQUAD,
    "jaqket_v2": DESCRIPTION + JAQKET_V2,
    "xlsum_ja": DESCRIPTION + XLSUM_JA,
    "xwinograd_ja": "",
    "mgsm": DESCRIPTION + MGSM,
}


def questions(name: str) -> list[Question]:
    return draw_questions(TASKS[name], *DATA[name])


def prompt(name: str, room: int = 10**6, number: int = 0) -> str:
    """The prompt of a question, where a token is a character."""
    return prompt_text(TASKS[name], questions(name)[number], len, room)


@pytest.mark.parametrize("name", TASKS)
def test_the_first_prompt_is_that_of_template_0_3(name: str) -> None:
    assert prompt(name) == EXPECTED[name]


def drawn(name: str, field: str) -> list[tuple[object, list[object]]]:
    """Which question was asked, and which examples it got, in order."""
    return [(question.doc[field], [doc[field] for doc in question.examples]) for question in questions(name)]


def test_questions_are_shuffled_and_examples_drawn_by_one_generator() -> None:
    assert drawn("jcommonsenseqa", "q_id") == [(1, [0, 2, 1]), (0, [1, 5, 0]), (2, [5, 4, 0])]
    assert drawn("jnli", "sentence_pair_id") == [
        ("1", ["0", "2", "1"]),
        ("0", ["1", "5", "0"]),
        ("2", ["5", "4", "0"]),
    ]
    assert drawn("jsquad", "id") == [
        ("a1p0q0", ["a0p0q0", "a2p0q0"]),
        ("a0p0q0", ["a1p0q0", "a5p0q0"]),
        ("a2p0q0", ["a1p0q0", "a0p0q0"]),
    ]
    assert drawn("jaqket_v2", "qid") == [("Q1", ["Q0"]), ("Q0", ["Q5"]), ("Q2", ["Q2"])]
    assert drawn("xwinograd_ja", "sentence1") == [(f"問{n}は甲である。", []) for n in (1, 0, 2)]
    assert drawn("mgsm", "answer_number") == [(1, [0, 2, 1, 5, 4]), (0, [5, 0, 4, 2, 1]), (2, [0, 5, 4, 3, 2])]


def test_drawing_leaves_the_data_and_the_global_generator_alone() -> None:
    random.seed(7)
    before, docs = random.getstate(), list(DATA["jnli"].asked)
    questions("jnli")
    assert random.getstate() == before
    assert list(DATA["jnli"].asked) == docs


def test_the_templates_parts_are_those_of_the_chat() -> None:
    """A question without examples is what `generate --input` sends."""
    question = questions("jsquad")[0]
    alone = prompt_text(TASKS["jsquad"], Question(question.doc, ()), len, 10**6)
    assert alone == instruction_prompt(
        "与えられた文脈から、質問に対する答えを抜き出してください。",
        "文脈：問1は町である。人口は1万人。\n質問：問1の人口は？",
    )


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("jcommonsenseqa", ["問1の答え0", "問1の答え1", "問1の答え2", "問1の答え3", "問1の答え4"]),
        ("jnli", ["entailment", "contradiction", "neutral"]),
        ("marc_ja", ["ポジティブ", "ネガティブ"]),
        ("xwinograd_ja", ["問1は甲である。", "問1は乙である。"]),
    ],
)
def test_choices_are_compared_as_they_are(name: str, choices: list[str]) -> None:
    task, doc = TASKS[name], questions(name)[0].doc
    assert task.choices is not None
    assert task.label is not None
    assert list(task.choices(doc)) == choices
    assert task.label(doc) == 1


@pytest.mark.parametrize(("name", "label"), [("jnli", 2), ("marc_ja", 1)])
def test_labels_are_numbers_on_the_hub_and_names_in_the_published_files(name: str, label: int) -> None:
    task = TASKS[name]
    assert task.label is not None
    named = next(doc for doc in DATA[name].training if task.label(doc) == label)
    numbered = {**named, "label": label}
    assert task.label(numbered) == label
    assert task.answer(numbered) == task.answer(named)


@pytest.mark.parametrize(
    ("name", "n_tokens"), [("jsquad", 3), ("jaqket_v2", 2), ("xlsum_ja", len("問1の話。") + 10), ("mgsm", 256)]
)
def test_generated_answers_are_as_long_as_the_longest_right_one(name: str, n_tokens: int) -> None:
    max_tokens = TASKS[name].max_tokens
    assert max_tokens is not None
    assert max_tokens(questions(name)[0].doc, len) == n_tokens


def test_mgsm_loses_whole_examples_at_the_left_until_it_fits() -> None:
    whole = prompt("mgsm")
    example = len("### 指示:\n与えられた問題に対して、ステップごとに答えを導き出してください。") + len(
        "### 入力:\n例0はいくつ？\n\n### 応答:\n例0です。答えは0です。\n\n"
    )
    for room, n_left in ((len(whole), 5), (len(whole) - 1, 4), (len(whole) - 2 * example, 3), (1, 0)):
        expected = DESCRIPTION + MGSM[(5 - n_left) * example :]
        assert prompt("mgsm", room) == expected


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (len(DESCRIPTION + XLSUM_JA), None),
        (2 * 65, None),
        (2 * 65 - 1, ("例0が起きた。例0が起きた。続く。\n", "問1が起きた。問1が起きた。続く。\n")),
        (2 * 62 - 1, ("例0が起きた。例0が起きた。\n", "問1が起きた。問1が起きた。\n")),
        (2 * 59 - 1, ("例0が起きた。\n", "問1が起きた。\n")),
        (2, ("例0が起きた。\n", "問1が起きた。\n")),
    ],
)
def test_articles_lose_sentences_at_the_end_so_that_each_has_an_equal_share(
    room: int, left: Sequence[str] | None
) -> None:
    """Up to the end of its article a shot has 65 characters, without its last sentence 62, then 59."""
    heading = "### 指示:\n与えられたニュース記事を要約してください。\n\n### 入力:\nニュース記事:"
    if left is None:
        assert prompt("xlsum_ja", room) == DESCRIPTION + XLSUM_JA
        return
    assert prompt("xlsum_ja", room) == (
        f"{DESCRIPTION}{heading}{left[0]}### 応答:\n例0の話。\n\n{heading}{left[1]}### 応答:\n"
    )


def test_suites_are_the_cards() -> None:
    assert SUITES["jglue-4"] == ("jcommonsenseqa", "jnli", "marc_ja", "jsquad")
    assert [(name, TASKS[name].version, TASKS[name].shots) for name in SUITES["jglue-8"]] == [
        ("jcommonsenseqa", "1.1", 3),
        ("jnli", "1.1", 3),
        ("marc_ja", "1.1", 3),
        ("jsquad", "1.1", 2),
        ("jaqket_v2", "0.2", 1),
        ("xlsum_ja", "1.0", 1),
        ("xwinograd_ja", "1.0", 0),
        ("mgsm", "1.0", 5),
    ]
