"""Requests that share one engine: common prefixes, the order of those who wait, room, cancelling.

Nothing here sleeps. A `Gate` holds the engine inside a prompt: what is submitted then meets it at once.
"""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support import reference
from tests.support.engines import (
    ENDLESS,
    GREEDY,
    ONE,
    PAIRS,
    PATIENCE,
    SHORT_ANSWERS,
    Gate,
    engine_of,
    hold,
    is_response,
    long_prompt,
    running,
)
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import complete


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Four sequences, which remember nothing yet."""
    with engine_of(4, n_ctx=4096) as engine:
        yield engine


def test_a_repeated_prompt_is_taken_from_the_cache_but_for_its_last_token(engine: Engine) -> None:
    prompt = long_prompt(300)
    first, second = (engine.generate(prompt, ONE) for _ in range(2))
    assert (first.stats.prompt_tokens, first.stats.cached_tokens) == (300, 0)
    assert (second.stats.prompt_tokens, second.stats.cached_tokens) == (300, 299)
    assert first.token_ids == second.token_ids


def test_what_idle_sequences_hold_is_counted_with_what_a_request_may_need() -> None:
    """The sequence chosen while room is made is the one that is used: what it held is forgotten, and nothing more."""
    older, newer, other = long_prompt(600, 1), long_prompt(1000, 2), long_prompt(100, 3)
    with engine_of(2, n_ctx=2048) as engine:
        for prompt in (older, newer):
            engine.generate(prompt, ONE, raw=True)
        prompt = newer[:100] + other
        done = engine.generate(prompt, replace(ENDLESS, max_tokens=2048 - len(prompt)), raw=True)
    assert (done.finish_reason, done.stats.completion_tokens) == ("length", 2048 - len(prompt))


def test_what_is_known_of_a_prompt_is_shared_before_it_is_forgotten_for_the_prompts_room() -> None:
    system, first, second = long_prompt(500, 1), long_prompt(700, 2), long_prompt(100, 3)
    with engine_of(4, n_ctx=2048) as engine:
        engine.generate(system + first, ONE, raw=True)
        done = engine.generate(system + second, replace(ENDLESS, max_tokens=1000), raw=True)
    assert done.stats.cached_tokens == 500


def test_instructions_share_the_preamble() -> None:
    with engine_of(1) as engine:
        previous: list[int] = []
        for pair in PAIRS[:6]:
            prompt = reference.encode(pair.prompt)
            shared = next(i for i, (a, b) in enumerate(zip([*prompt, -1], [*previous, -2], strict=False)) if a != b)
            done = engine.generate(pair.instruction, GREEDY)
            assert is_response(done, pair)
            assert done.stats.cached_tokens == shared
            previous = prompt
        assert shared > 15


def test_a_conversation_computes_only_what_is_new() -> None:
    with engine_of(1) as engine:
        chat = engine.chat(params=GREEDY)
        for pair in PAIRS[10:14]:
            before, with_this = len(chat.prompt_ids()), len(chat.prompt_ids(pair.instruction))
            stats = chat.send(pair.instruction).stats
            assert (stats.prompt_tokens, stats.cached_tokens) == (with_this, before)


def test_conversations_that_take_turns_keep_their_caches() -> None:
    with engine_of(3) as engine:
        chats = [engine.chat(params=GREEDY) for _ in range(3)]
        for turn in range(3):
            for n, chat in enumerate(chats):
                before = chat.tokens_used
                stats = chat.send(PAIRS[20 + 3 * turn + n].instruction).stats
                assert turn == 0 or stats.cached_tokens == before


def test_what_another_sequence_has_is_shared_with_a_request_beside_it(engine: Engine) -> None:
    gate = Gate()
    prefix = long_prompt(512)
    with engine.stream([*prefix, 5, 6], ONE, on_progress=gate) as first:
        gate.wait()  # the first 128 tokens are done
        with engine.stream([*prefix[:100], 7, 8], ONE) as second:
            gate.open()
            assert complete(list(second)).stats.cached_tokens == 100
        assert complete(list(first)).stats.cached_tokens == 0


def test_requests_at_the_same_time_compute_a_common_prefix_once(engine: Engine) -> None:
    prefix, tails = long_prompt(600), [[10 * n + i for i in range(5)] for n in range(1, 4)]
    alone = [engine.generate([*prefix, *tail], ONE).token_ids for tail in tails]
    engine.generate(long_prompt(1500, seed=1), ONE)
    with engine_of(4, n_ctx=4096) as fresh:
        gate, holding = hold(fresh)
        streams = [fresh.stream([*prefix, *tail], ONE) for tail in tails]
        gate.open()
        done = [complete(list(stream)) for stream in streams]
        holding.close()
    assert sum(d.stats.prompt_tokens - d.stats.cached_tokens for d in done) == len(prefix) + sum(map(len, tails))
    assert [d.token_ids for d in done] == alone


def test_a_cancelled_donor_leaves_its_prefix_to_those_who_wait_for_it(engine: Engine) -> None:
    prefix, tails = long_prompt(600), [[10 * n + i for i in range(5)] for n in range(1, 4)]
    with engine_of(4, n_ctx=4096) as other:
        alone = [other.generate([*prefix, *tail], ONE).token_ids for tail in tails]
    gate, holding = hold(engine)
    inside = Gate()
    donor = engine.stream([*prefix, *tails[0]], ONE, on_progress=inside)
    waiting = [engine.stream([*prefix, *tail], ONE) for tail in tails[1:]]
    gate.open()
    inside.wait()
    donor.cancel()
    inside.open()
    assert complete(list(donor)).finish_reason == "cancelled"
    done = [complete(list(stream)) for stream in waiting]
    assert [d.token_ids for d in done] == alone[1:]
    # One of the two goes on where the donor was, the other waits for it.
    ((n_done, _),) = inside.calls
    computed = [d.stats.prompt_tokens - d.stats.cached_tokens for d in done]
    assert sum(computed) == len(prefix) - n_done + len(tails[1]) + len(tails[2])
    holding.close()


def test_a_donor_whose_callback_fails_leaves_its_prefix_too(engine: Engine) -> None:
    prefix = long_prompt(400)

    def fail(*progress: int) -> None:
        raise KeyError(progress)

    gate, holding = hold(engine)
    donor = engine.stream([*prefix, 5], ONE, on_progress=fail)
    waiting = engine.stream([*prefix, 6], ONE)
    gate.open()
    with pytest.raises(KeyError):
        next(donor)
    assert complete(list(waiting)).finish_reason == "length"
    holding.close()


def test_progress_counts_up_to_the_whole_prompt(engine: Engine) -> None:
    calls: list[tuple[int, int]] = []
    engine.generate(long_prompt(300), ONE, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert len(calls) > 1
    assert calls[-1] == (300, 300)
    again: list[tuple[int, int]] = []
    engine.generate(long_prompt(300), ONE, on_progress=lambda done, total: again.append((done, total)))
    assert again == [(300, 300)]


def test_callers_beyond_n_parallel_wait_in_order() -> None:
    with engine_of(1) as engine:
        order: list[int] = []
        gate, holding = hold(engine)
        streams = [
            engine.stream(pair.instruction, GREEDY, on_progress=lambda *_, n=n: order.append(n))
            for n, pair in enumerate(SHORT_ANSWERS[:6])
        ]
        gate.open()
        done = [complete(list(stream)) for stream in streams]
        holding.close()
    assert order == list(range(6))
    assert all(map(is_response, done, SHORT_ANSWERS))


def test_requests_whose_prompts_do_not_fit_together_run_one_after_the_other() -> None:
    """Prompts of 140 tokens in 256 cells: there are sequences for four, and room for one."""
    with engine_of(4, n_ctx=256) as engine:
        together: list[int] = []
        gate, holding = hold(engine)
        streams = [
            engine.stream(
                long_prompt(140, seed=seed),
                ONE,
                on_progress=lambda *_: together.append(len(engine._scheduler._running)),
            )
            for seed in range(6)
        ]
        gate.open()
        for stream in streams:
            complete(list(stream))
        assert complete(list(holding)).finish_reason == "length"
    assert set(together[together.index(1) :]) == {1}


def test_requests_that_fit_together_run_at_the_same_time() -> None:
    with engine_of(4, n_ctx=256) as engine:
        together: list[int] = []
        gate, holding = hold(engine)
        streams = [
            engine.stream(
                pair.instruction,
                replace(GREEDY, max_tokens=10),
                on_progress=lambda *_: together.append(len(engine._scheduler._running)),
            )
            for pair in SHORT_ANSWERS[:3]
        ]
        gate.open()
        for stream in streams:
            list(stream)
        holding.close()
    assert max(together) >= 3


def test_a_big_request_is_not_overtaken_by_small_ones() -> None:
    """The small one, which would have had room at once, gets its sequence after the big one."""
    with engine_of(4, n_ctx=256) as engine:
        running_beside_small: set[int] = set()

        def look(*_: int) -> None:
            running_beside_small.update(len(running.request.prompt) for running in engine._scheduler._running)

        gate, holding = hold(engine)
        long = engine.stream(long_prompt(100), replace(ONE, max_tokens=60))
        big = engine.stream(long_prompt(200), ONE)
        small = engine.stream([5, 6, 7], ONE, on_progress=look)
        gate.open()
        for stream in (long, big, small):
            list(stream)
        holding.close()
    assert 200 in running_beside_small


def test_what_idle_sequences_remember_makes_room_for_who_needs_it() -> None:
    with engine_of(4, n_ctx=256) as engine:
        for _ in range(2):
            for n in range(6):
                done = engine.generate(long_prompt(200, seed=n), replace(ENDLESS, max_tokens=56))
                assert len(done.token_ids) == 56
            assert is_response(engine.generate(SHORT_ANSWERS[0].instruction, GREEDY), SHORT_ANSWERS[0])


def test_anything_at_once_in_little_room_gives_the_answers_of_each_alone() -> None:
    """120 requests of 8 threads on 4 sequences and 400 cells; a third is cancelled somewhere on the way."""
    pairs = sorted(PAIRS, key=lambda pair: len(pair.prompt) + len(pair.response))[:60]
    wrong: list[object] = []

    def ask(engine: Engine, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(15):
            pair = rng.choice(pairs)
            stream = engine.stream(pair.instruction, replace(GREEDY, max_tokens=rng.choice([60, 90, 150])))
            chunks = []
            leave_at = rng.choice([0, 1, 3, None, None, None, None, None])
            for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == leave_at:
                    stream.cancel()
            if leave_at == 0:
                stream.close()
            done = complete(chunks)
            complete_answer = is_response(done, pair)
            stopped_early = done.finish_reason != "stop" and pair.response.startswith(done.text.rstrip("\ufffd"))
            if not (complete_answer or stopped_early):
                wrong.append((pair, done))

    with engine_of(4, n_ctx=400) as engine:
        threads = [threading.Thread(target=ask, args=(engine, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert running(engine) == 0
    assert wrong == []
