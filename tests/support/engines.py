"""What tests of the engine share: engines of the demo model, long prompts, and a gate that holds an engine still."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from convert.demo.corpus import Pair, read_corpus
from tests.support import reference
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Chunk, Completion, Generation
from weblab_local.engine.sampling import SamplingParams
from weblab_local.models.store import demo_model

T = TypeVar("T")

PAIRS = [pair for pair in read_corpus() if pair.context is None]
LONG_ANSWERS = sorted(PAIRS, key=lambda pair: -len(pair.response))
SHORT_ANSWERS = sorted(PAIRS, key=lambda pair: len(pair.response))
GREEDY = SamplingParams(temperature=0, max_tokens=200)
ONE = SamplingParams(temperature=0, max_tokens=1)
ENDLESS = SamplingParams(temperature=0, max_tokens=4000, logit_bias={reference.END: float("-inf")})
PATIENCE = 60
"""Seconds after which a test that waits for the engine fails instead of hanging."""


def until(condition: Callable[[], object]) -> None:
    """Wait for what has to come about soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


def until_read(engine: Engine) -> None:
    """Wait until nothing reads ahead any more."""
    scheduler = engine._scheduler
    until(lambda: scheduler.call(lambda: not scheduler._waiting and not scheduler._running))


class Gate:
    """A progress callback that stops the engine inside of a prompt, until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.calls: list[tuple[int, int]] = []
        self._open = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        self.reached.set()
        assert self._open.wait(PATIENCE)

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


def engine_of(n_parallel: int, n_ctx: int = 2048) -> Engine:
    """The demo on one thread, so that little depends on the machine's load."""
    return Engine(demo_model(), n_parallel=n_parallel, n_ctx=n_ctx, n_threads=1)


def long_prompt(n_tokens: int, seed: int = 0) -> list[int]:
    """Tokens of corpus texts in some order: no two seeds have a prefix in common."""
    pairs = random.Random(seed).sample(PAIRS, len(PAIRS))
    ids = [2 + seed, *reference.encode("".join(pair.instruction + pair.response for pair in pairs))]
    assert len(ids) >= n_tokens
    return ids[:n_tokens]


def is_response(done: Completion, pair: Pair) -> bool:
    """Whether an answer is the whole response that the demo knows by heart."""
    return done.text == pair.response and done.finish_reason == "stop"


def running(engine: Engine) -> int:
    """How many requests have a sequence, once the engine has seen to all that was cancelled before."""
    scheduler = engine._scheduler
    scheduler.call(lambda: None)
    return scheduler.call(lambda: len(scheduler._running))


def hold(engine: Engine) -> tuple[Gate, Generation]:
    """A request that stops the engine; whatever is submitted until its gate opens meets the engine at once."""
    gate = Gate()
    generation = engine.stream([2999, 2998], ONE, raw=True, on_progress=gate)
    gate.wait()
    return gate, generation


def paused(engine: Engine, begin: Callable[[], T]) -> tuple[T, Gate]:
    """What `begin` starts, when its first token is there; the engine goes no further until the gate opens.

    Needs two sequences: the second request is read in the same batch, and its callback comes after that first token.
    """
    first_gate, _holding = hold(engine)
    begun, gate = begin(), Gate()
    _second = engine.stream([2997, 2996], ONE, raw=True, on_progress=gate)
    first_gate.open()
    gate.wait()
    return begun, gate


def end_of(generation: Generation) -> Chunk:
    """The last chunk."""
    return list(generation)[-1]
