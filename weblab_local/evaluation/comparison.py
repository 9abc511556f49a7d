"""Intervals, and two models on the same questions.

Shares get Wilson's score interval. Two models are compared pair by pair, which tells much smaller differences apart
than two separate intervals do: the mean of the differences with Student's interval, and for right-or-wrong answers
McNemar's exact test on the questions that only one of them has right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95
Interval = tuple[float, float]


def interval(values: Sequence[float]) -> Interval:
    """Where the mean of more such questions would be, with 95% confidence. Values are from 0 to 1."""
    if set(values) <= {0.0, 1.0}:
        result = stats.binomtest(round(sum(values)), len(values))
        low, high = result.proportion_ci(LEVEL, method="wilson")
        return float(low), float(high)
    low, high = _student(values)
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class Comparison:
    """Two models' scores on the same n questions. `difference` is the second's mean minus the first's.

    `only_first` and `only_second`: questions that only that one has right; they and `p_value`, McNemar's, two-sided,
    are None where answers are not simply right or wrong.
    """

    n: int
    first: float
    second: float
    interval: Interval
    only_first: int | None
    only_second: int | None
    p_value: float | None

    @property
    def difference(self) -> float:
        """What the second gains."""
        return self.second - self.first


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare scores of the same questions in the same order. Raises ValueError for different numbers of them."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n = len(differences)
    only_first = only_second = p_value = None
    if {*first, *second} <= {0.0, 1.0}:
        only_first, only_second = differences.count(-1.0), differences.count(1.0)
        p_value = mcnemar(only_first, only_second)
    return Comparison(n, sum(first) / n, sum(second) / n, _student(differences), only_first, only_second, p_value)


def mcnemar(only_first: int, only_second: int) -> float:
    """How probable so uneven a split, or a more uneven one, is between equally good models: 1 for no split at all."""
    n = only_first + only_second
    return float(stats.binomtest(only_first, n, 0.5).pvalue) if n else 1.0


def _student(values: Sequence[float]) -> Interval:
    """The mean's interval; not-a-number for a single value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return math.nan, math.nan
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return mean - reach, mean + reach
