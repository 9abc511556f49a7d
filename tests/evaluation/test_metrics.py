"""Scores of generated answers, beside lm-eval's tokenizer, rouge_score and numbers worked out by hand."""

import pytest

from tests.evaluation.support import DATA
from weblab_local.evaluation.metrics import exact_match, f1, judge, last_number, rouge2
from weblab_local.evaluation.tasks import TASKS


@pytest.mark.parametrize(
    ("text", "golds", "expected"),
    [
        ("富士山", ["高尾山", "富士山"], 1.0),
        ("富士山。", ["富士山"], 0.0),
        ("", ["富士山"], 0.0),
        ("１９９０年", ["1990年"], 1.0),  # neologdn: full width digits
        ("ｶﾀｶﾅ", ["カタカナ"], 1.0),  # and half width kana
        ("富士山🗻", ["富士山"], 1.0),
        ("  富士 山 ", ["富士山"], 1.0),  # no spaces between Japanese characters
        ("New York", ["NewYork"], 0.0),
    ],
)
def test_exact_match_is_of_normalized_texts(text: str, golds: list[str], expected: float) -> None:
    assert exact_match(text, golds) == expected


def test_f1_is_of_words() -> None:
    """東京 都 の against 東京 都: two of three and two of two words."""
    assert f1("東京都の", ["大阪府", "東京都"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("東京都", ["東京都"]) == 1.0
    assert f1("", ["東京都"]) == 0.0
    assert f1("東京東京", ["東京"]) == pytest.approx(2 * 0.5 / 1.5)


def test_rouge2_is_of_neighbouring_words() -> None:
    """犬 が 走る / 犬 が 歩く: one of two pairs on either side."""
    assert rouge2("犬が走る", "犬が歩く") == pytest.approx(0.5)
    assert rouge2("犬が走る", "犬が走る") == pytest.approx(1.0)
    assert rouge2("", "犬が走る") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7です。", 7.0),
        ("答えは1,234円。", 1234.0),
        ("答えは12.", 12.0),
        ("答えは-5です", -5.0),
        ("合計は 18.0", 18.0),
        ("2.5", None),
        ("1.2.3", None),
        ("答えは分からない", None),
        ("12個,", None),
        ("", None),
    ],
)
def test_the_last_number_counts(text: str, expected: float | None) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("jsquad", "1万", {"exact_match": 1.0, "f1": 1.0}),
        ("jaqket_v2", "名前", {"exact_match": 0.0, "f1": 0.0}),
        ("xlsum_ja", "問1の話。", {"rouge2": 1.0}),
        ("mgsm", "だから答えは1", {"acc": 1.0}),
        ("mgsm", "だから答えは2", {"acc": 0.0}),
    ],
)
def test_each_task_is_judged_by_the_cards_metric(name: str, text: str, expected: dict[str, float]) -> None:
    found = judge(TASKS[name], DATA[name].asked[1], text)
    assert found == pytest.approx(expected)
    assert next(iter(found)) == TASKS[name].metric
