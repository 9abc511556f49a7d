"""Cells as they are needed: requests that do not fit together are preempted, and nobody can see it by the answers."""

import json
import random
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from convert.demo.corpus import Pair
from tests.support.cells import Cells
from tests.support.engines import (
    ENDLESS,
    GREEDY,
    LONG_ANSWERS,
    ONE,
    PATIENCE,
    Gate,
    end_of,
    engine_of,
    hold,
    is_response,
    long_prompt,
    running,
)
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Completion, complete
from weblab_local.engine.roster import HEADROOM
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError

FAR_BEYOND = replace(GREEDY, max_tokens=5000)
"""What clients send as a matter of course: more than any context here holds."""


@pytest.mark.parametrize(
    ("n_ctx", "n_parallel", "n_callers", "seed"),
    [(256, 1, 4, 1), (256, 4, 4, 2), (256, 8, 16, 3), (512, 16, 16, 4), (1024, 8, 16, 5), (2048, 16, 16, 6)],
)
def test_random_loads_are_answered_as_if_each_were_alone(
    n_ctx: int, n_parallel: int, n_callers: int, seed: int
) -> None:
    """Of answers that the demo knows by heart; between them some are cancelled."""
    rng = random.Random(seed)
    longest = LONG_ANSWERS[:10]
    pairs = [rng.choice(longest) for _ in range(6 * n_callers)]
    wrong: list[str] = []
    preempted: list[int] = []

    with engine_of(n_parallel, n_ctx=n_ctx) as engine:
        cells = Cells(engine)

        def call(mine: Sequence[Pair], rng: random.Random) -> None:
            for pair in mine:
                with engine.stream(pair.instruction, FAR_BEYOND) as stream:
                    if rng.random() < 0.2:
                        next(stream)
                        continue
                    done = complete(list(stream))
                preempted.append(done.stats.preempted)
                if not is_response(done, pair):
                    wrong.append(f"{pair.instruction}: {done.text}")

        threads = [
            threading.Thread(target=call, args=(pairs[n::n_callers], random.Random(seed * 100 + n)))
            for n in range(n_callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            cells.check()
            thread.join(120)
            assert not thread.is_alive()
        assert running(engine) == 0
        assert not engine._scheduler._roster.preempted
        cells.check()
    assert wrong == []
    if n_ctx == 256 and n_parallel > 1:
        assert sum(preempted) > 0
        assert max(preempted) <= 5


KNOWN = LONG_ANSWERS[0]
"""Recomputed in other cells, logits have other last bits, as in another batch: what the demo is sure of is the same."""

SETTINGS = {
    "greedy": FAR_BEYOND,
    "seed": SamplingParams(temperature=0.5, seed=7, max_tokens=1000),
    "penalties": SamplingParams(
        temperature=0.5, seed=3, max_tokens=1000, repeat_penalty=1.02, presence_penalty=0.1, frequency_penalty=0.05
    ),
    "grammar": replace(FAR_BEYOND, grammar=f"root ::= {json.dumps(KNOWN.response, ensure_ascii=False)}"),
    "stop": replace(FAR_BEYOND, stop=(KNOWN.response[-6:], "never")),
}


def beside_an_older_one(engine: Engine, params: SamplingParams) -> Completion:
    """An answer whose request is preempted: an older one fills the context beside it."""
    gate = Gate()
    older = engine.stream(long_prompt(100), replace(ENDLESS, max_tokens=900), raw=True, on_progress=gate)
    gate.wait()
    younger = engine.stream(KNOWN.instruction, params, logprobs=2)
    gate.open()
    assert complete(list(older)).stats.preempted == 0
    return complete(list(younger))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_answer_goes_on_as_if_nothing_had_happened(setting: str) -> None:
    params = SETTINGS[setting]
    with engine_of(2, n_ctx=256) as small, engine_of(1, n_ctx=2048) as large:
        done = beside_an_older_one(small, params)
        alone = large.generate(KNOWN.instruction, params, logprobs=2)
    assert done.stats.preempted > 0
    assert done.text == (KNOWN.response[:-6] if setting == "stop" else KNOWN.response)
    assert (done.text, done.token_ids, done.finish_reason) == (alone.text, alone.token_ids, alone.finish_reason)
    for ours, theirs in zip(done.logprobs, alone.logprobs, strict=True):
        assert ours.token_id == theirs.token_id
        assert ours.logprob == pytest.approx(theirs.logprob, abs=0.1)
    assert done.stats.completion_tokens == alone.stats.completion_tokens
    assert done.stats.prompt_tokens == alone.stats.prompt_tokens


def test_several_that_ask_for_more_than_there_is_are_all_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three whose max_tokens together are six times the context: none waits for what another has only asked for."""
    n_running: list[int] = []
    with engine_of(4, n_ctx=512) as engine:
        roster = engine._scheduler._roster
        preempt = roster._preempt_youngest

        def noted() -> None:
            n_running.append(len(roster.running))
            preempt()

        monkeypatch.setattr(roster, "_preempt_youngest", noted)
        gate, held = hold(engine)
        streams = [engine.stream([5, 6, 7 + n], replace(ENDLESS, max_tokens=1000), raw=True) for n in range(3)]
        gate.open()
        list(held)
        done = [complete(list(stream)) for stream in streams]
    assert n_running[0] == 3
    assert {one.finish_reason for one in done} == {"length"}


def test_a_request_alone_runs_to_the_end_of_its_context() -> None:
    with engine_of(4, n_ctx=256) as engine:
        for n in range(6):
            engine.generate(long_prompt(40, seed=n), ONE, raw=True)
        done = engine.generate([5, 6], replace(ENDLESS, max_tokens=5000), raw=True)
        assert (len(done.token_ids), done.stats.preempted) == (254, 0)


def test_a_short_request_is_not_behind_a_long_prompt() -> None:
    """Its first token comes after as many steps as its own prompt takes, and one."""
    with engine_of(4, n_ctx=2048) as engine:
        first = engine.stream(long_prompt(1800), ONE, raw=True)
        gate = Gate()
        short = engine.stream([9, 8, 7], ONE, raw=True, on_progress=gate)
        gate.wait()
        read = [len(running.sequence.tokens) for running in engine._scheduler._running]
        gate.open()
        complete(list(short))
        complete(list(first))
    assert min(read) == 3
    assert max(read) < 1800


def test_a_preempted_request_can_be_cancelled_and_the_engine_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    preempted, goes_on = threading.Event(), threading.Event()
    with engine_of(2, n_ctx=256) as engine:
        roster = engine._scheduler._roster
        preempt = roster._preempt_youngest

        def stop_there() -> None:
            preempt()
            preempted.set()
            assert goes_on.wait(PATIENCE)

        monkeypatch.setattr(roster, "_preempt_youngest", stop_there)
        gate, _held = hold(engine)
        _older, younger, youngest = (engine.stream(long_prompt(60, seed=n), ENDLESS, raw=True) for n in range(3))
        gate.open()
        assert preempted.wait(PATIENCE)
        younger.cancel()
        goes_on.set()
        assert end_of(younger).finish_reason == "cancelled"
    with pytest.raises(WeblabError, match="closed"):
        list(youngest)


def test_who_was_preempted_waits_for_twice_the_room_each_time() -> None:
    with engine_of(2, n_ctx=256) as engine:
        gate, _held = hold(engine)
        older = engine.stream(long_prompt(100), replace(ENDLESS, max_tokens=150), raw=True)
        younger = engine.stream(long_prompt(60, seed=1), replace(ENDLESS, max_tokens=190), raw=True)
        gate.open()
        list(older)
        stats = complete(list(younger)).stats
    assert 1 <= stats.preempted <= (256 // HEADROOM).bit_length()
