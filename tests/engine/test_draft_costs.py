"""How long drafts are, by what batches cost and how often guesses come true: worth their time, or none."""

import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weblab_local.engine.draft_costs import CHECK_EVERY, MOST_TOKENS, OUTDATED, Acceptance, BatchCosts

Cost = Callable[[int], float]
"""Seconds of a batch of so many tokens."""

Q8_0: Mapping[int, float] = {1: 0.113, 2: 0.122, 3: 0.136, 4: 0.142, 6: 0.246, 8: 0.225}
Q4_K: Mapping[int, float] = {1: 0.046, 2: 0.080, 3: 0.112, 4: 0.136, 6: 0.201, 8: 0.250}
"""Measured on two cores (9 layers of the 10B)."""


def between(table: Mapping[int, float]) -> Cost:
    """The costs of a table, and of all other sizes by the two around them."""

    def cost(n_tokens: int) -> float:
        low = max(size for size in table if size <= n_tokens)
        high = min((size for size in table if size >= n_tokens), default=low)
        if high == low:
            return table[low] * n_tokens / low
        return table[low] + (table[high] - table[low]) * (n_tokens - low) / (high - low)

    return cost


def generate(cost: Cost, n_tokens: int, guessed: Callable[[int], bool], odds: float) -> tuple[float, list[int]]:
    """Seconds of an answer of which each token is `guessed` or not, and the drafts' lengths."""
    costs, seconds, lengths, done = BatchCosts(), 0.0, [], 0
    while done < n_tokens:
        length = costs.best_length(1, [odds**n for n in range(1, MOST_TOKENS)])
        step = cost(1 + length)
        costs.computed(1 + length, step)
        seconds += step
        lengths.append(length)
        kept = next((n for n in range(length) if not guessed(done + n)), length)
        done += kept + 1
    return seconds / done, lengths


def test_where_a_few_tokens_more_cost_little_they_are_guessed() -> None:
    seconds, lengths = generate(between(Q8_0), 400, lambda _n: True, 0.95)
    assert seconds < Q8_0[1] / 2
    assert set(lengths[-20:]) == {7}


def test_where_every_token_costs_as_much_uncertain_guesses_are_left_be() -> None:
    rng = random.Random(1)
    seconds, lengths = generate(between(Q4_K), 400, lambda _n: rng.random() < 0.5, 0.5)
    assert sum(map(bool, lengths)) <= 2
    assert seconds < 1.01 * Q4_K[1]


@settings(max_examples=40, deadline=None)
@given(odds=st.floats(0.05, 0.98), weights=st.floats(0, 1), token=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_drafts_of_known_odds_are_never_slower(odds: float, weights: float, token: float, seed: int) -> None:
    """But for the few that show what they cost."""
    rng = random.Random(seed)
    seconds, _lengths = generate(lambda n: weights + token * n, 1500, lambda _n: rng.random() < odds, odds)
    assert seconds <= 1.03 * (weights + token)


def test_a_batch_between_two_that_were_measured_costs_what_lies_between() -> None:
    costs = BatchCosts()
    for size, seconds in ((1, 1.0), (4, 2.5), (8, 3.0)):
        costs.computed(size, seconds)
    assert costs.seconds(2) == pytest.approx(1.5)
    assert costs.seconds(6) == pytest.approx(2.75)
    assert costs.seconds(15) == pytest.approx(5.0)


def test_all_costs_follow_a_machine_that_slows_down() -> None:
    costs = BatchCosts()
    for size, seconds in ((1, 1.0), (4, 1.2)):
        costs.computed(size, seconds)
    for _ in range(40):
        costs.computed(1, 3.0)
    assert costs.seconds(1) == pytest.approx(3.0, rel=0.01)
    assert costs.seconds(4) > 1.4


def test_what_was_not_measured_for_long_is_tried_again() -> None:
    """A first draft that took ten times as long by accident does not end drafts for good."""
    costs = BatchCosts()
    costs.computed(1, 1.0)
    costs.computed(4, 10.0)
    odds = [0.9**n for n in range(1, 16)]
    assert costs.best_length(1, odds) == 0
    for _ in range(OUTDATED + CHECK_EVERY):
        costs.computed(1, 1.0)
    assert costs.best_length(1, odds) == 3


def test_a_clock_that_does_not_move_is_no_error() -> None:
    costs = BatchCosts()
    for seconds in (0.0, 0.0, 1.0, 0.0):
        costs.computed(1, seconds)
    assert 0 < costs.seconds(1) < 1


def test_no_draft_is_made_beside_a_generation_that_was_not_measured() -> None:
    costs = BatchCosts()
    assert costs.best_length(1, [1.0] * 8) == 0
    costs.computed(1, 1.0)
    assert costs.best_length(2, [1.0] * 8) == 0


def test_odds_follow_what_came_true_by_the_length_of_the_end() -> None:
    acceptance = Acceptance()
    before = acceptance.of(3)
    for _ in range(300):
        acceptance.note(2, False)
        acceptance.note(20, True)
    assert acceptance.of(2) < 0.05
    assert acceptance.of(40) > 0.95
    assert acceptance.of(3) == before
