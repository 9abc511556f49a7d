"""How a generated answer is judged: exact match and F1, ROUGE-2, the last number. All from 0 to 1.

Words are MeCab's (UniDic), after emoji are removed and neologdn has normalized the text; lm-eval's own Japanese tasks
have that tokenizer from the same fork.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from weblab_local.evaluation.tasks import Doc, Task

_NUMBER = re.compile(r"-?[0-9.,]+")


def judge(task: Task, doc: Doc, text: str) -> Mapping[str, float]:
    """The metrics of a generated answer, the one that the card gives first."""
    golds = task.golds(doc) if task.golds is not None else ()
    if task.metric == "exact_match":
        return {"exact_match": exact_match(text, golds), "f1": f1(text, golds)}
    if task.metric == "rouge2":
        return {"rouge2": rouge2(text, golds[0])}
    return {"acc": float(last_number(text) == float(golds[0]))}


def exact_match(text: str, golds: Sequence[str]) -> float:
    """Whether the normalized text is one of the `golds`."""
    normalize = _tokenizer().normalize_answer
    return float(any(normalize(text) == normalize(gold) for gold in golds))


def f1(text: str, golds: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, for the best of the `golds`: SQuAD's F1."""
    return max(_overlap(_tokenizer().tokenize(text), _tokenizer().tokenize(gold)) for gold in golds)


def _overlap(words: Sequence[str], gold: Sequence[str]) -> float:
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold)) if common else 0.0


def rouge2(text: str, gold: str) -> float:
    """F of the pairs of neighbouring words."""
    return float(_rouge().score(gold, text)["rouge2"].fmeasure)


def last_number(text: str) -> float | None:
    """The last number in `text` if it is a whole one, without commas and dots around it; else None."""
    found = _NUMBER.findall(text)
    try:
        number = float(found[-1].strip(".").replace(",", "")) if found else None
    except ValueError:  # "1.2.3", or a comma alone
        return None
    return number if number is not None and number.is_integer() else None


@cache
def _tokenizer() -> Any:
    from lm_eval.tasks.japanese_leaderboard.ja_leaderboard_xlsum import MecabTokenizer

    return MecabTokenizer()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge2"], tokenizer=_tokenizer())
