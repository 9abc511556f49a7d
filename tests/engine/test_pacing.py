"""Prompts beside a generation: as much as fits into twice the time of a step without them, on any machine."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engines import ENDLESS, ONE, engine_of, long_prompt
from weblab_local.engine.pacing import CHANGED_AFTER, MEASURE_EVERY, PAUSE, UNNOTICED_SECONDS, Pacing
from weblab_local.llama.context import BatchToken

Cost = Callable[[int], float]
"""Seconds of a step of so many tokens."""


def read(pacing: Pacing, cost: Cost, n_steps: int, n_generating: int = 1, n_batch: int = 512) -> list[int]:
    """Compute steps with endless prompts beside the generations: the prompt tokens in each."""
    chunks = []
    for _ in range(n_steps):
        n_prompt = min(pacing.chunk(n_generating), n_batch - n_generating)
        pacing.computed(n_generating, n_prompt, cost(n_generating + n_prompt))
        chunks.append(n_prompt)
    return chunks


def weights_then_tokens(weights: float, token: float) -> Cost:
    """Every step reads the weights, and computes each token."""
    return lambda n: weights + token * n


def weights_beside_tokens(weights: float, token: float) -> Cost:
    """The longer of the two."""
    return lambda n: max(weights, token * n)


@pytest.mark.parametrize("cost", [weights_then_tokens(0.25, 0.01), weights_beside_tokens(0.25, 0.01)])
def test_where_reading_the_weights_takes_the_time_much_is_read_beside_them(cost: Cost) -> None:
    """A quarter of a second for the weights, 10 ms for a token: 8 tokens in a step would leave half of it unused."""
    chunks = read(Pacing(), cost, 100)
    settled = [n for n in chunks[20:] if n]
    assert min(settled) >= 20
    assert sum(chunks[20:]) / sum(cost(1 + n) for n in chunks[20:]) > 0.8 * 26 / cost(27)


def test_where_tokens_take_the_time_little_is_read_beside_a_generation() -> None:
    assert set(read(Pacing(), weights_then_tokens(0.0, 0.1), 40)) == {0, 1}


@given(
    weights=st.floats(0, 1),
    token=st.floats(0.0001, 0.1),
    n_generating=st.integers(1, 8),
    beside=st.booleans(),
)
def test_a_step_takes_at_most_twice_one_without_a_prompt_and_most_of_that(
    weights: float, token: float, n_generating: int, beside: bool
) -> None:
    cost = (weights_beside_tokens if beside else weights_then_tokens)(weights, token)
    chunks = read(Pacing(), cost, 60, n_generating)
    allowed = 1.0001 * max(2 * cost(n_generating), UNNOTICED_SECONDS)
    assert max(cost(n_generating + n) for n in chunks) <= allowed + token  # the chunk is rounded to whole tokens
    fits = max(n for n in range(512 - n_generating) if cost(n_generating + n) <= allowed)
    assert max(chunks) >= fits // 2


def test_beside_a_small_models_quick_steps_whole_chunks_are_read() -> None:
    """A step of 1 ms would leave room for 8 tokens: what every step costs would be most of what a prompt takes."""
    chunks = read(Pacing(), weights_then_tokens(0.001, 0.0001), 40)
    assert max(chunks) >= 400


def test_the_chunk_follows_what_steps_take_now() -> None:
    pacing = Pacing()
    before = max(read(pacing, weights_then_tokens(0.25, 0.01), 60))
    dearer = weights_then_tokens(0.25, 0.05)
    after = read(pacing, dearer, 60)
    assert before > 20
    assert max(dearer(1 + n) for n in after[20:]) <= 2.01 * dearer(1) + 0.05


def test_a_step_without_a_prompt_is_measured_again_and_again() -> None:
    chunks = read(Pacing(), weights_then_tokens(0.25, 0.01), 1 + 3 * (MEASURE_EVERY + 1))
    assert [i for i, n in enumerate(chunks) if n == 0] == [n * (MEASURE_EVERY + 1) for n in range(4)]


def test_other_generations_are_measured_soon() -> None:
    pacing, cost = Pacing(), weights_then_tokens(0.25, 0.01)
    read(pacing, cost, 1)
    chunks = read(pacing, cost, 10, n_generating=2)
    assert [i for i, n in enumerate(chunks) if n == 0] == [CHANGED_AFTER]


def test_prompts_are_read_beside_generations_that_change_all_the_time() -> None:
    pacing, cost = Pacing(), weights_then_tokens(0.25, 0.01)
    chunks = [read(pacing, cost, 1, n_generating=1 + step % 3)[0] for step in range(100)]
    assert sum(n > 0 for n in chunks) > 60


def test_one_slow_step_halves_the_chunk_at_most_and_the_rest_of_a_prompt_does_not_raise_it() -> None:
    pacing, cost = Pacing(), weights_then_tokens(0.25, 0.01)
    read(pacing, cost, 30)
    before = pacing.chunk(1)
    pacing.computed(1, 1, cost(2))
    assert pacing.chunk(1) == before
    pacing.computed(1, before, 100.0)
    assert next(n for n in read(pacing, cost, 10) if n) == before // 2


def test_the_rest_of_a_short_prompt_is_read_at_once_and_then_made_up_for() -> None:
    """Beside one answer, 40 tokens take 0.4 s more than a step of 0.05 s: a chunk of that step would be 5."""
    pacing, cost = Pacing(), weights_then_tokens(0.04, 0.01)
    assert pacing.chunk(0, 40) >= 40
    pacing.computed(0, 40, cost(40))
    read(pacing, cost, 1)
    assert pacing.chunk(1, 40) == 40
    pacing.computed(1, 40, cost(41))
    assert 0 < pacing.chunk(1, 40) <= 40
    pacing.computed(1, 40, cost(41))
    without = 0
    while not pacing.chunk(1, 40):
        pacing.computed(1, 0, cost(1))
        without += 1
    assert without * cost(1) >= cost(41) - PAUSE


def test_a_prompt_that_would_take_long_is_read_in_pieces() -> None:
    pacing, cost = Pacing(), weights_then_tokens(0.04, 0.01)
    pacing.computed(0, 40, cost(40))
    read(pacing, cost, 1)
    assert pacing.chunk(1, 400) < 10


@given(
    weights=st.floats(0, 0.5),
    token=st.floats(0.0001, 0.1),
    n_generating=st.integers(1, 8),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
)
def test_answers_keep_half_of_their_speed_but_for_a_pause(
    weights: float, token: float, n_generating: int, lengths: list[int]
) -> None:
    """Whatever prompts come, from any step on, in so many steps."""
    pacing, cost = Pacing(), weights_then_tokens(weights, token)
    alone = cost(n_generating)
    allowed = max(2 * alone, UNNOTICED_SECONDS)
    late = most = 0.0
    for length in lengths:
        left = length
        while left:
            n_prompt = min(pacing.chunk(n_generating, left), left)
            pacing.computed(n_generating, n_prompt, cost(n_generating + n_prompt))
            left -= n_prompt
            late = max(0.0, late + cost(n_generating + n_prompt) - allowed)
            most = max(most, late)
    assert most <= 2 * PAUSE + alone + token


def test_after_a_step_that_took_for_ever_prompts_are_read_again_soon() -> None:
    """The machine slept."""
    pacing, cost = Pacing(), weights_then_tokens(0.04, 0.01)
    read(pacing, cost, 5)
    pacing.computed(1, 4, 1e6)
    assert sum(cost(1) for n in read(pacing, cost, 100)[: 2 * round(PAUSE / cost(1))] if n == 0) <= PAUSE + cost(1)


def test_an_engine_whose_prompt_tokens_are_nearly_free_reads_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler asks the rule: with a clock of a machine that reads weights for a quarter of a second."""
    now, mixed = [0.0], list[int]()
    with engine_of(2, n_ctx=4096) as engine:
        decode = engine._context.decode

        def decode_and_tell_time(entries: Sequence[BatchToken]) -> bool:
            done = decode(entries)
            now[0] += 0.25 + 0.001 * len(entries)
            sizes = Counter(entry.sequence for entry in entries)
            if len(sizes) == 2 and 1 in sizes.values():
                mixed.append(len(entries) - 1)
            return done

        monkeypatch.setattr(engine._context, "decode", decode_and_tell_time)
        monkeypatch.setattr("weblab_local.engine.scheduler.time.perf_counter", lambda: now[0])
        with engine.stream("Say hello.", ENDLESS) as beside:
            next(beside)
            engine.generate(long_prompt(1500), ONE)
        n_batch = engine._context.n_batch
    assert max(mixed) == n_batch - 1
    assert len(mixed) < 1500 / (n_batch - 1) + 15


def read_alone(pacing: Pacing, cost: Cost, n_steps: int, n_batch: int = 512) -> list[int]:
    """Compute steps with endless prompts and nothing that generates: the tokens in each."""
    chunks = []
    for _ in range(n_steps):
        chunks.append(min(pacing.chunk(0), n_batch))
        pacing.computed(0, chunks[-1], cost(chunks[-1]))
    return chunks


def test_a_prompt_alone_is_read_in_whole_batches_where_a_step_can_be_aborted() -> None:
    assert set(read_alone(Pacing(), weights_then_tokens(0.25, 0.1), 10)) == {512}


@pytest.mark.parametrize("token", [0.003, 0.01, 0.02])
def test_where_a_step_cannot_be_aborted_it_soon_ends(token: float) -> None:
    """An integrated GPU computes the 10B at 50 to 300 tokens a second: a batch of 512 would take it seconds."""
    cost = weights_then_tokens(0.1, token)
    chunks = read_alone(Pacing(can_abort=False), cost, 12)
    assert max(chunks) < 512
    assert max(cost(n) for n in chunks[4:]) <= max(0.5 + token, cost(32))


def test_a_fast_device_soon_reads_whole_batches() -> None:
    assert read_alone(Pacing(can_abort=False), weights_then_tokens(0.01, 0.0001), 4) == [128, 256, 512, 512]


def test_the_short_end_of_a_prompt_says_nothing_of_the_next() -> None:
    pacing = Pacing(can_abort=False)
    pacing.computed(0, 3, 0.01)
    assert pacing.chunk(0) == 128
