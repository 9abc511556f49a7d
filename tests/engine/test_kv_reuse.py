"""The KV cache under random work: what is reused, shared, forgotten, saved and restored is never stale.

The demo knows its corpus by heart: what transformers answers to these prompts, also when they are continued, is the
corpus itself, so a wrong cell shows as a wrong answer. After every step each sequence's tokens are compared with the
positions that llama.cpp has cells for.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from llama_cpp import llama_cpp as lib

from tests.support import reference
from tests.support.engines import GREEDY, ONE, PAIRS, Gate, engine_of, long_prompt
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Generation, complete

SHORT = sorted(PAIRS, key=lambda pair: len(pair.prompt) + len(pair.response))[:80]


class Workload:
    """Requests and what else may happen to an engine, drawn from a seed."""

    def __init__(self, engine: Engine, seed: int, state: Path) -> None:
        self.engine = engine
        self.state = state
        self.rng = random.Random(seed)
        self.running: list[tuple[Generation, list[int], int]] = []
        """Generation, the ids that transformers would generate, and how many were asked for."""
        self.saved: list[tuple[list[int], bytes]] = []
        self.done: Counter[str] = Counter()

    def ask(self) -> None:
        """A corpus prompt with some tokens of its answer: what is left of the answer has to come."""
        pair = self.rng.choice(SHORT)
        prompt, answer = reference.encode(pair.prompt), reference.encode(pair.response)
        given = self.rng.choice([0, 0, self.rng.randrange(len(answer))])
        wanted = answer[given:]
        n = self.rng.choice([1, 3, 60, 60])
        params = replace(GREEDY, max_tokens=n)
        self.running.append((self.engine.stream([*prompt, *answer[:given]], params, raw=True), wanted, n))

    def fill(self) -> None:
        """Something else, which leaves its tokens in the cache."""
        ids = long_prompt(self.rng.randrange(2, 150), seed=self.rng.randrange(3))
        complete(list(self.engine.stream(ids, replace(GREEDY, max_tokens=self.rng.choice([1, 4])), raw=True)))
        self.done["fill"] += 1

    def cancel(self) -> None:
        """Leave a running request at a random place."""
        if self.running:
            generation, wanted, _n = self.running.pop(self.rng.randrange(len(self.running)))
            chunks = []
            for _ in range(self.rng.choice([0, 1, 2])):
                chunks.append(next(generation))
                if chunks[-1].finish_reason is not None:
                    break
            generation.close()
            ids = [token for chunk in chunks for token in chunk.token_ids]
            assert ids == wanted[: len(ids)]
            self.done["cancel"] += 1

    def cancel_inside_a_prompt(self) -> None:
        gate = Gate()
        generation = self.engine.stream(long_prompt(200, seed=5), replace(GREEDY, max_tokens=1), on_progress=gate)
        if not self.running:  # else it may have to wait for those whose chunks nobody reads
            gate.wait()
            generation.close()
            self.done["inside"] += 1
        else:
            generation.close()
        gate.open()

    def finish(self) -> None:
        """Read a request to its end: the answer is transformers'."""
        if self.running:
            generation, wanted, n = self.running.pop(0)
            done = complete(list(generation))
            assert list(done.token_ids) == wanted[:n]
            assert done.finish_reason == ("stop" if len(wanted) < n else "length")
            self.done["finish"] += 1
            self.done["cached"] += done.stats.cached_tokens > 0

    def save(self) -> None:
        """Save what is there when all have been answered: a sequence that a request has cannot be saved."""
        while self.running:
            self.finish()
        pair = self.rng.choice(SHORT)
        ids = reference.encode(pair.prompt + pair.response)
        length = self.engine.save_prefix(ids, self.state)
        if length:
            self.saved = [*self.saved[-3:], (ids[:length], self.state.read_bytes())]
            self.done["save"] += 1

    def restore(self) -> None:
        if self.saved:
            self.done["restore"] += self.engine.restore_prefix(*self.rng.choice(self.saved))

    def step(self) -> None:
        """One of these; most often a request, or an answer."""
        actions: list[Callable[[], None]] = [
            *[self.ask] * 8,
            *[self.finish] * 7,
            *[self.cancel] * 2,
            self.fill,
            self.save,
            self.restore,
            self.cancel_inside_a_prompt,
        ]
        self.rng.choice(actions)()


def check_cells(engine: Engine) -> None:
    """Every sequence has cells for its tokens, from the first position on, and no others."""
    memory = engine._context._memory

    def look() -> None:
        for sequence in engine._scheduler._cache.sequences:
            n = len(sequence.tokens)
            first = lib.llama_memory_seq_pos_min(memory, sequence.index)
            last = lib.llama_memory_seq_pos_max(memory, sequence.index)
            assert (first, last) == ((0, n - 1) if n else (-1, -1)), sequence

    engine._scheduler.call(look)


def test_saving_takes_nothing_from_another_conversation(tmp_path: Path) -> None:
    ids = long_prompt(60, seed=1)
    with engine_of(1) as engine:
        engine.generate([*ids, *long_prompt(100, seed=2)], ONE)
        held = list(engine._scheduler._cache.sequences[0].tokens)
        assert engine.save_prefix([*ids, *long_prompt(100, seed=3)], tmp_path / "state") == 0
        assert not (tmp_path / "state").exists()
        assert engine._scheduler._cache.sequences[0].tokens == held
        check_cells(engine)


def test_the_answers_are_transformers() -> None:
    for pair in SHORT:
        assert reference.is_greedy(reference.encode(pair.prompt), [*reference.encode(pair.response), reference.END])


@pytest.mark.parametrize(("n_parallel", "n_ctx", "seed"), [(1, 256, 1), (3, 300, 2), (4, 600, 3), (4, 2048, 4)])
def test_random_work_gives_transformers_answers(tmp_path: Path, n_parallel: int, n_ctx: int, seed: int) -> None:
    with engine_of(n_parallel, n_ctx=n_ctx) as engine:
        work = Workload(engine, seed, tmp_path / "state")
        for _ in range(250):
            work.step()
            check_cells(engine)
        while work.running:
            work.finish()
            check_cells(engine)
    assert min(work.done[name] for name in ("finish", "cached", "cancel", "fill", "save", "restore")) >= 1, work.done
