"""An engine that is dropped without being closed leaves nothing behind, and not before its last answer is read."""

import gc
import threading
import weakref
from collections.abc import Callable

import psutil
import pytest

from tests.support.engines import ENDLESS, GREEDY, PATIENCE, SHORT_ANSWERS, engine_of, is_response, long_prompt
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import complete
from weblab_local.engine.scheduler import Scheduler


def is_freed(scheduler: Scheduler) -> bool:
    """Whether thread, context and weights of a dropped engine are gone, once the thread has ended."""
    scheduler._thread.join(PATIENCE)
    return not (scheduler._thread.is_alive() or scheduler._context.handle or scheduler._model.handle)


def leave_idle(engine: Engine) -> None:
    engine.generate("Say hello.", GREEDY)


def leave_answering(engine: Engine) -> None:
    next(engine.stream("Say hello.", ENDLESS))


def leave_reading(engine: Engine) -> None:
    reading = threading.Event()
    stream = engine.stream(long_prompt(1500), GREEDY, on_progress=lambda *_: reading.set())
    assert reading.wait(PATIENCE)
    del stream


def leave_failed(engine: Engine) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("test")

    engine._scheduler._admit = fail  # type: ignore[method-assign]
    with pytest.raises(Exception, match="test"):
        engine.generate("Say hello.", GREEDY)
    engine._scheduler._thread.join(PATIENCE)


@pytest.mark.parametrize("leave", [leave_idle, leave_answering, leave_reading, leave_failed])
def test_a_dropped_engine_frees_its_weights_and_ends_its_thread(leave: Callable[[Engine], None]) -> None:
    engine = engine_of(2, n_ctx=4096)
    scheduler, gone = engine._scheduler, weakref.ref(engine)
    leave(engine)
    del engine
    gc.collect()
    assert gone() is None
    assert is_freed(scheduler)


def test_an_engine_lives_as_long_as_somebody_reads_an_answer_of_it() -> None:
    pair = SHORT_ANSWERS[0]
    engine = engine_of(1)
    stream, scheduler = engine.stream(pair.instruction, GREEDY), engine._scheduler
    del engine
    gc.collect()
    assert is_response(complete(list(stream)), pair)
    del stream
    gc.collect()
    assert is_freed(scheduler)


def test_the_worker_thread_may_be_the_last_to_have_an_engine() -> None:
    """A callback that holds the engine goes with its request, on the thread that would otherwise wait for itself."""
    engine = engine_of(1)
    scheduler, called, goes_on = engine._scheduler, threading.Event(), threading.Event()

    def progressed(*_: int, engine: Engine = engine) -> None:
        assert engine.piece(5)
        called.set()
        assert goes_on.wait(PATIENCE)

    stream = engine.stream("Say hello.", GREEDY, on_progress=progressed)
    gone = weakref.ref(engine)
    assert called.wait(PATIENCE)
    del engine, stream, progressed
    gc.collect()
    assert gone() is not None
    goes_on.set()
    assert is_freed(scheduler)
    assert gone() is None


def test_a_hundred_dropped_engines_leave_nothing_behind() -> None:
    process = psutil.Process()

    def load_and_drop() -> None:
        engine = engine_of(2)
        scheduler = engine._scheduler
        next(engine.stream("Say hello.", ENDLESS))
        del engine
        assert is_freed(scheduler)

    for _ in range(10):
        load_and_drop()
    gc.collect()
    memory, threads = process.memory_info().rss, threading.active_count()
    for _ in range(100):
        load_and_drop()
    gc.collect()
    assert process.memory_info().rss - memory < 13_000_000
    assert threading.active_count() == threads
