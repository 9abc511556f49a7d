"""A process that forks after loading: in the child every call ends at once, and the parent goes on undisturbed."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import llama_cpp as lib

from tests.support.engines import ENDLESS, GREEDY, PATIENCE, SHORT_ANSWERS, end_of, engine_of, hold, is_response
from tests.support.forks import in_child
from weblab_local import load
from weblab_local.chat.session import ChatSession
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Generation
from weblab_local.errors import ForkedError, WeblabError
from weblab_local.llama import backends, ggml

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PAIR = SHORT_ANSWERS[0]
QUESTION = PAIR.instruction


@pytest.fixture
def engine() -> Iterator[Engine]:
    with engine_of(2) as engine:
        yield engine


@contextmanager
def locks_held(engine: Engine) -> Iterator[None]:
    """Another thread holds each lock of the engine, so that a child has them locked for ever."""
    held, release = threading.Event(), threading.Event()

    def hold_all() -> None:
        with ExitStack() as stack:
            for lock in (engine._scheduler._changed, engine._prompts.users._changed, engine._closing):
                stack.enter_context(lock)
            held.set()
            assert release.wait(PATIENCE)

    thread = threading.Thread(target=hold_all)
    thread.start()
    assert held.wait(PATIENCE)
    try:
        yield
    finally:
        release.set()
        thread.join()


def raises(call: Callable[[], Any]) -> str:
    """The message of the ForkedError that `call` raises."""
    with pytest.raises(ForkedError) as caught:
        call()
    return str(caught.value)


async def aread(engine: Engine) -> None:
    async for _chunk in engine.astream(QUESTION, GREEDY):
        pass


CALLS: dict[str, Callable[[Engine], Any]] = {
    "generate": lambda engine: engine.generate(QUESTION, GREEDY),
    "stream": lambda engine: engine.stream(QUESTION, GREEDY),
    "agenerate": lambda engine: asyncio.run(engine.agenerate(QUESTION, GREEDY)),
    "astream": lambda engine: asyncio.run(aread(engine)),
    "score": lambda engine: engine.score("日本の首都は", ["東京"]),
    "save_prefix": lambda engine: engine.save_prefix([5, 6], Path("state")),
    "restore_prefix": lambda engine: engine.restore_prefix([5, 6], b"state"),
    "send": lambda engine: engine.chat().send(QUESTION, GREEDY),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_needs_the_worker_says_that_the_process_was_forked(name: str, engine: Engine) -> None:
    with locks_held(engine):
        message = in_child(lambda: raises(lambda: CALLS[name](engine)))
    assert "before this process was forked" in message
    assert "spawn" in message


def test_answers_that_run_cannot_be_read_in_the_child(engine: Engine) -> None:
    chat = engine.chat()
    gate, running = hold(engine)
    reply = chat.stream(QUESTION, GREEDY)

    def read_them() -> None:
        raises(lambda: next(running))
        raises(lambda: next(reply))

    in_child(read_them)
    gate.open()
    assert end_of(running).finish_reason == "length"
    assert [chunk.finish_reason for chunk in reply][-1] == "stop"
    assert is_response(reply.reply, PAIR)
    assert len(chat.turns) == 1

    async def read_in_both() -> str:
        stream = engine.astream(QUESTION, GREEDY)
        in_child(lambda: raises(lambda: asyncio.run(stream.__anext__())))
        return "".join([chunk.text async for chunk in stream])

    assert asyncio.run(read_in_both()) == PAIR.response


FREEING = ("llama_free", "llama_model_free", "llama_batch_free", "llama_sampler_free", "llama_memory_seq_rm")


def closed_in_every_way(engine: Engine, chat: ChatSession, running: list[Any]) -> list[str]:
    """Close and let go of all there is; returns which functions of llama.cpp that called."""
    called: list[str] = []
    for name in FREEING:
        setattr(lib, name, lambda *_arguments, name=name: called.append(name))
    for answer in running:
        answer.cancel()
        answer.close()
        with answer:
            pass
    with engine:
        engine.close()
    engine._scheduler.close(0.0)
    engine._finalizer()  # what happens to an engine that nobody has any more
    running.clear()
    chat.__dict__.clear()
    engine.__dict__.clear()
    gc.collect()
    return called


def test_closing_and_letting_go_frees_nothing_of_the_parent_and_waits_for_nothing(engine: Engine) -> None:
    with locks_held(engine):
        assert in_child(lambda: closed_in_every_way(engine, engine.chat(), [])) == []


def test_the_parent_goes_on_while_the_child_lets_go_of_everything(engine: Engine) -> None:
    chat = engine.chat()
    stream, reply = engine.stream(QUESTION, ENDLESS), chat.stream(QUESTION, GREEDY)
    next(stream)
    assert in_child(lambda: closed_in_every_way(engine, chat, [stream, reply])) == []
    assert next(stream).finish_reason is None
    reply_end = list(reply)[-1]
    assert reply_end.finish_reason == "stop"
    assert is_response(reply.reply, PAIR)
    stream.close()
    assert is_response(engine.generate(QUESTION, GREEDY), PAIR)


def test_what_needs_no_thread_works_in_the_child(engine: Engine) -> None:
    chat = ChatSession(engine, "簡潔に。")
    here = engine.tokenize(QUESTION), engine._model.tokenizer.pieces[7], chat.to_dict(), engine.description()
    with locks_held(engine):
        there = in_child(lambda: (engine.tokenize(QUESTION), engine.piece(7), chat.to_dict(), engine.description()))
    assert there == here

    def closed() -> None:
        engine.close()
        with pytest.raises(WeblabError, match="closed"):
            engine.tokenize(QUESTION)

    in_child(closed)


def test_a_model_that_the_child_loads_answers_beside_the_parents(engine: Engine) -> None:
    def answer() -> bool:
        with load("demo", n_ctx=512) as own:
            return is_response(own.generate(QUESTION, GREEDY), PAIR)

    stream = engine.stream(QUESTION, ENDLESS)
    next(stream)
    assert in_child(answer)
    assert next(stream).finish_reason is None


@pytest.mark.parametrize("lock", ["ggml's", "of loading backends"])
def test_a_lock_that_loading_needs_is_free_in_the_child(lock: str, engine: Engine) -> None:
    assert engine.path.is_file()
    take: Callable[[], Any]
    release: Callable[[], Any]
    take, release = backends._loading.acquire, backends._loading.release
    if lock == "ggml's":
        take, release = (ggml.function(f"ggml_critical_section_{end}", None) for end in ("start", "end"))
    done = threading.Event()

    def take_and_release() -> None:
        while not done.is_set():
            take()
            release()

    thread = threading.Thread(target=take_and_release)
    thread.start()
    try:
        for _time in range(20):
            in_child(lambda: (take(), release()))
    finally:
        done.set()
        thread.join()


def test_graphics_cards_of_the_parent_are_refused_before_their_driver_ends_the_child(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.path.is_file()
    monkeypatch.setattr(backends, "_with_devices", lambda: ["CPU", "CUDA"])

    def message() -> str:
        with pytest.raises(WeblabError) as caught:
            load("demo")
        return str(caught.value)

    assert "CUDA" in in_child(message)
    with load("demo"):
        pass


def test_the_backends_with_devices_are_this_machines(engine: Engine) -> None:
    assert engine.path.is_file()
    assert "CPU" in backends._with_devices()


def printed(code: str) -> str:
    """What a program prints that ends well and says nothing on stderr."""
    options = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


FORKS_IN_A_CALLBACK = f"""
import os
from weblab_local import SamplingParams, load

children = []

def fork(done, total):
    if not children:
        children.append(os.fork())

with load("demo") as model:
    done = model.generate({QUESTION!r}, SamplingParams(temperature=0), on_progress=fork)
    print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
    print("parent answered" if done.text == {PAIR.response!r} else done.text)
"""


def test_a_child_that_comes_back_from_a_callback_on_the_worker_thread_ends() -> None:
    assert printed(FORKS_IN_A_CALLBACK) == "1\nparent answered\n"


LEAVES_BY_EXIT = f"""
import os, sys
from weblab_local import SamplingParams, load

greedy = SamplingParams(temperature=0)
endless = SamplingParams(max_tokens=2000, logit_bias={{0: float("-inf")}})
model = load("demo", n_ctx=4096, n_parallel=2)
running = model.stream([5, 6, 7], endless, raw=True)
next(running)
child = os.fork()
if not child:
    sys.exit(7)  # atexit, the end of all modules, and C's own
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(model.generate({QUESTION!r}, greedy).text == {PAIR.response!r})
"""


def test_a_child_may_end_as_programs_do() -> None:
    assert printed(LEAVES_BY_EXIT) == "7\nTrue\n"


MULTIPROCESSING = f"""
import multiprocessing
from weblab_local import SamplingParams, WeblabError, load

def ask(model, answers):
    try:
        model.generate({QUESTION!r})
    except WeblabError as error:
        answers.put(str(error))

with load("demo") as model:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=ask, args=(model, answers))
    process.start()
    process.join()
    print(process.exitcode, "forked" in answers.get())
    print(model.generate({QUESTION!r}, SamplingParams(temperature=0)).text == {PAIR.response!r})
"""


def test_multiprocessing_gets_the_error_instead_of_a_hang() -> None:
    assert printed(MULTIPROCESSING) == "0 True\nTrue\n"


def test_a_generation_remembers_the_process_that_made_it() -> None:
    generation = Generation(lambda: None)
    in_child(lambda: raises(lambda: next(generation)))
