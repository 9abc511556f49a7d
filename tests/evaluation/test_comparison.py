"""Intervals and paired comparison, beside textbook values and the bootstrap."""

import math
import random

import pytest

from weblab_local.evaluation.comparison import compare, interval, mcnemar


def test_mcnemars_exact_test() -> None:
    """2 of 12: twice the sum of the binomial's first three terms, 2 * (1 + 12 + 66) / 4096."""
    assert mcnemar(2, 10) == pytest.approx(2 * 79 / 4096)
    assert mcnemar(10, 2) == mcnemar(2, 10)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)


def test_a_shares_interval_is_wilsons() -> None:
    """15 of 50: Wilson's formula with z = 1.959964, (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    z, n, p = 1.959964, 50, 0.3
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle + sign * reach) / (1 + z * z / n) for sign in (-1, 1)]
    assert interval([1.0] * 15 + [0.0] * 35) == pytest.approx(expected, abs=1e-5)
    assert interval([1.0] * 5)[1] == 1.0


def test_intervals_of_other_scores_hold_what_the_bootstrap_says() -> None:
    rng = random.Random(0)
    values = [rng.betavariate(2, 5) for _ in range(200)]
    means = sorted(sum(rng.choices(values, k=200)) / 200 for _ in range(4000))
    assert interval(values) == pytest.approx((means[100], means[-101]), abs=0.004)


def test_two_models_on_the_same_questions() -> None:
    first = [1.0] * 60 + [0.0] * 40
    second = [1.0] * 50 + [0.0] * 10 + [1.0] * 2 + [0.0] * 38
    found = compare(first, second)
    assert (found.n, found.only_first, found.only_second) == (100, 10, 2)
    assert (found.first, found.second) == (0.6, 0.52)
    assert found.difference == pytest.approx(-0.08)
    assert found.p_value == pytest.approx(mcnemar(10, 2))
    # (10 + 2 - 8² / 100) / 99 is the differences' variance, and 1.98422 Student's t for 99 degrees of freedom.
    reach = 1.98422 * math.sqrt((12 - 0.64) / 99 / 100)
    assert found.interval == pytest.approx((-0.08 - reach, -0.08 + reach), abs=1e-5)


def test_pairs_tell_apart_what_two_intervals_do_not() -> None:
    first = [1.0] * 120 + [0.0] * 80
    second = [1.0] * 120 + [1.0] * 8 + [0.0] * 72
    assert interval(first)[1] > interval(second)[0]
    assert compare(first, second).interval[0] > 0
    assert compare(first, second).p_value == pytest.approx(2 / 256)


def test_scores_that_are_not_right_or_wrong_have_no_mcnemar() -> None:
    found = compare([0.2, 0.4, 0.1], [0.3, 0.3, 0.2])
    assert (found.only_first, found.only_second, found.p_value) == (None, None, None)
    assert found.difference == pytest.approx(0.1 / 3)


def test_one_question_has_no_interval_and_different_numbers_are_refused() -> None:
    assert all(map(math.isnan, compare([1.0], [0.0]).interval))
    with pytest.raises(ValueError, match="shorter"):
        compare([1.0, 0.0], [1.0])
