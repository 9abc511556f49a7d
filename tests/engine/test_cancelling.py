"""Requests that end early: cancelled, closed, dropped, with a callback that fails, or together with the engine.

Whoever runs beside them notices nothing, and the engine answers afterwards as before.
"""

import asyncio
import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.engines import (
    ENDLESS,
    GREEDY,
    LONG_ANSWERS,
    ONE,
    PATIENCE,
    SHORT_ANSWERS,
    Gate,
    end_of,
    engine_of,
    hold,
    is_response,
    long_prompt,
    paused,
    running,
)
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Chunk, Completion, Generation, complete
from weblab_local.errors import WeblabError
from weblab_local.llama.context import BatchToken


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Four sequences, which remember nothing yet."""
    with engine_of(4, n_ctx=4096) as engine:
        yield engine


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine"), asyncio.CancelledError("mine")])
def test_an_exception_in_a_callback_reaches_its_caller_alone(engine: Engine, error: BaseException) -> None:
    pair = LONG_ANSWERS[0]

    def fail(*_: int) -> None:
        raise error

    gate, holding = hold(engine)
    beside = engine.stream(pair.instruction, GREEDY)
    failing = engine.stream(long_prompt(1000), GREEDY, on_progress=fail)
    gate.open()
    with pytest.raises(type(error), match="mine"):
        list(failing)
    assert is_response(complete(list(beside)), pair)
    assert complete(list(holding)).finish_reason == "length"
    assert is_response(engine.generate(pair.instruction, GREEDY), pair)


def test_a_callback_cannot_wait_for_its_own_thread(engine: Engine) -> None:
    wishes: Sequence[Callable[[], object]] = [
        engine.close,
        lambda: engine.generate("Say hello.", GREEDY),
        lambda: list(engine.stream("Say hello.", GREEDY)),
        lambda: engine.save_prefix([1], Path("state")),
    ]
    for wish in wishes:

        def wishing(*_: int, wish: Callable[[], object] = wish) -> None:
            wish()

        with pytest.raises(WeblabError, match="on_progress"):
            engine.generate("Say hello.", GREEDY, on_progress=wishing)
    assert engine.generate("Say hello.", GREEDY).finish_reason == "stop"


def test_cancelling_ends_an_answer_at_the_next_token(engine: Engine) -> None:
    stream, gate = paused(engine, lambda: engine.stream("Say hello.", ENDLESS))
    first = next(stream)
    stream.cancel()
    gate.open()
    done = complete([first, *stream])
    assert (done.text, len(done.token_ids), done.finish_reason) == (first.text, 1, "cancelled")
    assert done.stats.completion_tokens == 1
    assert running(engine) == 0


def test_cancelling_twice_or_after_the_end_does_nothing(engine: Engine) -> None:
    pair = SHORT_ANSWERS[0]
    stream = engine.stream(pair.instruction, GREEDY)
    done = complete(list(stream))
    stream.cancel()
    stream.cancel()
    stream.close()
    assert is_response(done, pair)
    assert is_response(engine.generate(pair.instruction, GREEDY), pair)


@pytest.mark.parametrize("way", ["close", "with", "break", "drop"])
def test_a_closed_or_dropped_generation_is_cancelled(engine: Engine, way: str) -> None:
    stream, gate = paused(engine, lambda: engine.stream("Say hello.", ENDLESS))
    events = stream._events
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "with":
        with stream:
            next(stream)
        assert list(stream) == []
    elif way == "break":
        for _chunk in stream:
            break
    del stream
    gc.collect()
    gate.open()
    assert running(engine) == 0
    last = None
    while not events.empty():
        last = events.get()
    assert isinstance(last, Chunk)
    assert last.finish_reason == "cancelled"


def test_cancelling_in_the_middle_of_a_prompt_leaves_the_others_alone(engine: Engine) -> None:
    pair = LONG_ANSWERS[0]
    gate, holding = hold(engine)
    beside = engine.stream(pair.instruction, GREEDY)
    middle = Gate()
    reading = engine.stream(long_prompt(1500), GREEDY, on_progress=middle)
    gate.open()
    middle.wait()
    reading.cancel()
    middle.open()
    end = end_of(reading)
    assert (end.text, end.token_ids, end.finish_reason) == ("", (), "cancelled")
    assert end.stats is not None
    assert (end.stats.prompt_tokens, end.stats.completion_tokens) == (1500, 0)
    assert len(middle.calls) == 1
    assert is_response(complete(list(beside)), pair)
    assert is_response(engine.generate(pair.instruction, GREEDY), pair)
    # What was computed is not lost.
    assert engine.generate(long_prompt(1500), ONE).stats.cached_tokens == middle.calls[0][0] < 1500
    holding.close()


def cancel_in_a_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, leavers: Sequence[Generation], sizes: Sequence[int]
) -> list[bool]:
    """Cancel `leavers` while a batch of so many tokens of each sequence is decoded: whether llama.cpp completed it.

    The list gets its only entry then.
    """
    decode = engine._context.decode
    results: list[bool] = []

    def decode_and_cancel(entries: Sequence[BatchToken]) -> bool:
        found = Counter(entry.sequence for entry in entries).values()
        if results or sorted(min(n, 2) for n in found) != sorted(sizes):
            return decode(entries)
        for leaver in leavers:
            cancelling = threading.Thread(target=leaver.cancel)
            cancelling.start()
            cancelling.join(PATIENCE)
        results.append(decode(entries))
        return results[0]

    monkeypatch.setattr(engine._context, "decode", decode_and_cancel)
    return results


def test_cancelling_all_that_is_in_a_batch_aborts_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = LONG_ANSWERS[0]
    gate, holding = hold(engine)
    answering = engine.stream(pair.instruction, GREEDY)
    reading = engine.stream(long_prompt(1500), GREEDY)
    results = cancel_in_a_batch(engine, monkeypatch, [answering, reading], [1, 2])
    gate.open()
    assert [end_of(stream).finish_reason for stream in (answering, reading)] == ["cancelled"] * 2
    assert results == [False]
    assert is_response(engine.generate(pair.instruction, GREEDY), pair)
    holding.close()


def test_cancelling_one_of_a_batch_lets_the_others_have_their_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = LONG_ANSWERS[0]
    gate, holding = hold(engine)
    beside = engine.stream(pair.instruction, GREEDY)
    reading = engine.stream(long_prompt(1500), GREEDY)
    results = cancel_in_a_batch(engine, monkeypatch, [reading], [1, 2])
    gate.open()
    assert end_of(reading).finish_reason == "cancelled"
    assert results == [True]
    assert is_response(complete(list(beside)), pair)
    assert is_response(engine.generate(pair.instruction, GREEDY), pair)
    holding.close()


def test_readers_that_leave_again_and_again_cost_a_generation_no_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three clients ask, leave while their prompts are read, and ask again: every decode gives the generation one."""
    decode = engine._context.decode
    readers: list[Generation] = []
    results: list[tuple[bool, bool]] = []
    """For each of forty batches: whether a reader was in it beside the generation, and whether it was completed."""

    def leave_and_come_again(entries: Sequence[BatchToken]) -> bool:
        for reader in readers:
            reader.close()
        readers.clear()
        done = decode(entries)
        if len(results) < 40:
            results.append((len({entry.sequence for entry in entries}) > 1, done))
            readers.extend(engine.stream(long_prompt(1000, seed=3 * len(results) + n), GREEDY) for n in range(3))
        return done

    with engine.stream("Say hello.", replace(ENDLESS, max_tokens=100)) as generation:
        first = next(generation)
        monkeypatch.setattr(engine._context, "decode", leave_and_come_again)
        done = complete([first, *generation])
    assert len(done.token_ids) == 100
    assert sum(beside for beside, _done in results) >= 15
    assert all(done for _beside, done in results)


def test_a_request_cancelled_while_it_waits_never_begins() -> None:
    with engine_of(1) as engine:
        began = []
        gate, holding = hold(engine)
        waiting = [engine.stream([5, n], ONE, on_progress=lambda *_, n=n: began.append(n)) for n in (5, 6, 7)]
        waiting[1].cancel()
        gate.open()
        ends = [end_of(stream) for stream in waiting]
        holding.close()
    assert [end.finish_reason for end in ends] == ["length", "cancelled", "length"]
    assert began == [5, 7]
    assert ends[1].stats is not None
    assert (ends[1].stats.prompt_tokens, ends[1].stats.cached_tokens, ends[1].stats.completion_tokens) == (2, 0, 0)


def test_cancelling_the_task_cancels_the_request(engine: Engine) -> None:
    async def run(gate: Gate, task: "asyncio.Task[Completion]") -> None:
        await asyncio.to_thread(gate.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()

    async def both() -> None:
        middle = Gate()
        await run(middle, asyncio.create_task(engine.agenerate(long_prompt(1500), GREEDY, on_progress=middle)))
        assert running(engine) == 0
        assert len(middle.calls) == 1

        gate, holding = hold(engine)
        waiting = asyncio.create_task(engine.agenerate([5, 6, 7], ENDLESS, raw=True))
        await asyncio.sleep(0)
        await run(gate, waiting)
        assert [chunk.finish_reason for chunk in holding] == ["length"]
        assert running(engine) == 0

        stream, gate = paused(engine, lambda: engine.astream("Say hello.", ENDLESS))
        async for _chunk in stream:
            break
        del stream
        gc.collect()
        gate.open()
        assert running(engine) == 0

        stream, gate = paused(engine, lambda: engine.astream("Say hello.", ENDLESS))
        stream.cancel()
        gate.open()
        assert [chunk.finish_reason async for chunk in stream] == [None, "cancelled"]

    asyncio.run(both())
    assert is_response(engine.generate(SHORT_ANSWERS[0].instruction, GREEDY), SHORT_ANSWERS[0])


def test_closing_ends_what_runs_and_what_waits_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(2) as engine:
        gate, holding = hold(engine)
        reading = engine.stream(long_prompt(1500), GREEDY)
        waiting = engine.stream("Say hello.", GREEDY)
        worker = engine._scheduler._thread
        join = worker.join

        def open_and_join(seconds: float | None) -> None:
            gate.open()
            join(seconds)

        monkeypatch.setattr(worker, "join", open_and_join)  # called when the engine has begun to close
        engine.close()
        assert end_of(holding).finish_reason == "length"
        for stream in (reading, waiting):
            with pytest.raises(WeblabError, match="closed"):
                list(stream)


LEFT_OPEN = """
import atexit, threading
atexit.register(lambda: print(any("weblab" in thread.name for thread in threading.enumerate())))  # called last
from weblab_local.engine.engine import Engine
from weblab_local.models.store import demo_model
from weblab_local.engine.sampling import SamplingParams

engine = Engine(demo_model(), n_parallel=2, n_ctx=4096)
reading = threading.Event()
endless = SamplingParams(max_tokens=2000, logit_bias={0: float("-inf")})
answering = engine.stream([5, 6, 7], endless, raw=True)
prompt = engine.stream(list(range(5, 1905)), endless, raw=True, on_progress=lambda *_: reading.set())
assert reading.wait(60)
"""


def test_a_program_may_end_without_closing_its_engine() -> None:
    """llama.cpp would crash a process that is taken apart while a thread computes."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)
