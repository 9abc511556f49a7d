"""An engine closes in the middle of anything, tells whoever still uses it, and leaves nothing behind."""

import asyncio
import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from convert.demo.corpus import read_corpus
from tests.support import reference
from tests.support.engines import GREEDY, ONE, is_response
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import complete
from weblab_local.errors import WeblabError
from weblab_local.models.store import demo_model

PAIRS = read_corpus()
SAY_HELLO = next(pair for pair in PAIRS if pair.instruction == "Say hello.")
ENDLESS = replace(GREEDY, max_tokens=10_000, logit_bias={reference.END: float("-inf")})


def test_after_close_everything_is_an_error() -> None:
    engine = Engine(demo_model(), n_threads=1)
    chat = engine.chat(params=ONE)
    chat.send("Say hello.")
    engine.close()
    uses: Sequence[Callable[[], object]] = [
        lambda: engine.generate("a"),
        lambda: engine.stream("a"),
        lambda: asyncio.run(engine.agenerate("a")),
        lambda: engine.tokenize("a"),
        lambda: engine.piece(5),
        lambda: engine.save_prefix([1], Path("state")),
        lambda: engine.restore_prefix([1], b""),
        lambda: chat.send("a"),
        lambda: chat.tokens_used,
    ]
    for use in uses:
        with pytest.raises(WeblabError, match="closed"):
            use()
    engine.close()


def test_the_context_manager_closes_also_after_an_error() -> None:
    with pytest.raises(KeyError), Engine(demo_model(), n_threads=1) as engine:
        raise KeyError
    with pytest.raises(WeblabError, match="closed"):
        engine.generate("a")


def test_a_close_that_was_interrupted_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(demo_model(), n_threads=1)
    join = threading.Thread.join

    def interrupted(_thread: threading.Thread, _seconds: float | None = None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.close()
    with pytest.raises(WeblabError, match="closed"):
        engine.generate("a")
    assert engine._model.handle
    assert threading.Thread.join is join
    engine.close()
    assert not engine._model.handle


def test_an_answer_is_complete_before_the_engine_closes_and_readable_afterwards() -> None:
    with Engine(demo_model(), n_threads=1) as engine:
        done = engine.generate(SAY_HELLO.instruction, GREEDY)
        ended = engine.stream(SAY_HELLO.instruction, GREEDY)
        engine.generate("1+1は？", GREEDY)  # waits for its turn behind that
    assert is_response(done, SAY_HELLO)
    assert is_response(complete(list(ended)), SAY_HELLO)


def test_other_threads_may_use_the_engine_while_it_closes() -> None:
    """They get what they asked for, or the error of a closed engine."""
    text = "".join(pair.response for pair in PAIRS)
    expected = reference.encode(text)
    unexpected: list[object] = []

    def use(engine: Engine, begun: threading.Event) -> None:
        try:
            while True:
                if engine.tokenize(text) != expected:
                    unexpected.append("ids")
                begun.set()
                engine.generate([5, 6], ONE)
        except WeblabError as error:
            if "closed" not in str(error):
                unexpected.append(error)
        except BaseException as error:
            unexpected.append(error)

    for _ in range(15):
        engine = Engine(demo_model(), n_threads=1)
        begun = [threading.Event() for _ in range(3)]
        threads = [threading.Thread(target=use, args=(engine, event)) for event in begun]
        for thread in threads:
            thread.start()
        for event in begun:
            assert event.wait(60)
        engine.close()
        for thread in threads:
            thread.join(60)
    assert unexpected == []


def test_nobody_waits_for_a_text_that_is_tokenized_but_who_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(demo_model(), n_threads=1)
    inside, goes_on, closed = threading.Event(), threading.Event(), threading.Event()
    encode = engine._model.tokenizer.encode
    ids: list[list[int]] = []

    def slow(text: str, limit: int | None = None, *, special: bool = False) -> list[int]:
        if text == "slow":
            inside.set()
            assert goes_on.wait(60)
        return encode(text, limit, special=special)

    def close() -> None:
        engine.close()
        closed.set()

    monkeypatch.setattr(engine._model.tokenizer, "encode", slow)
    tokenizing = threading.Thread(target=lambda: ids.append(engine.tokenize("slow")))
    tokenizing.start()
    assert inside.wait(60)
    assert engine.piece(engine.tokenize("a")[0]) == b"a"
    closing = threading.Thread(target=close)
    closing.start()
    engine._scheduler._thread.join(60)
    with pytest.raises(WeblabError, match="closed"):
        engine.piece(5)
    assert not closed.is_set()
    goes_on.set()
    closing.join(60)
    tokenizing.join(60)
    assert closed.is_set()
    assert ids == [reference.encode("slow")]


def test_a_hundred_loads_leave_nothing_behind() -> None:
    """Each load takes 13 MB for weights and KV cache; all together may leave as much as one of them."""
    process = psutil.Process()

    def load() -> None:
        with Engine(demo_model(), n_parallel=2, n_threads=2) as engine:
            assert engine.generate(SAY_HELLO.instruction, ONE).text
            _still_running = engine.stream([5, 6, 7], ENDLESS, raw=True)

    for _ in range(10):
        load()
    gc.collect()
    memory, files, threads = process.memory_info().rss, process.num_fds(), threading.active_count()
    os_threads = process.num_threads()
    for _ in range(100):
        load()
    gc.collect()
    assert process.memory_info().rss - memory < 13_000_000
    assert process.num_fds() == files
    assert threading.active_count() == threads
    assert process.num_threads() <= os_threads + 2
