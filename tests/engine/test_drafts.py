"""Drafts: the same tokens in fewer steps, whatever is guessed and whoever else is there."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from convert.demo.corpus import Pair
from tests.support import reference
from tests.support.cells import Cells
from tests.support.engines import (
    ENDLESS,
    GREEDY,
    LONG_ANSWERS,
    ONE,
    SHORT_ANSWERS,
    Gate,
    end_of,
    engine_of,
    is_response,
    long_prompt,
)
from weblab_local.engine.draft_costs import MOST_TOKENS, BatchCosts
from weblab_local.engine.drafts import END, MOST_GENERATING, REMEMBERED, Guess, Lookup
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Completion, complete
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.suffix_index import SuffixIndex
from weblab_local.errors import SamplingError
from weblab_local.llama.context import BatchToken, Context, Model
from weblab_local.models.store import demo_model

DRAWN = SamplingParams(temperature=0.5, max_tokens=200)
"""As most people ask: without a seed."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer batch costs nothing: all that is guessed is computed, on any machine."""
    monkeypatch.setattr(BatchCosts, "seconds", lambda _self, _n_tokens: 1.0)


@pytest.fixture
def any_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of any length, and guesses of which some are wrong."""
    rng = random.Random(0)
    following = SuffixIndex.following

    def spoilt(index: SuffixIndex, place: int, n: int) -> list[int]:
        return [token if rng.random() < 0.85 else rng.randrange(3000) for token in following(index, place, n)]

    monkeypatch.setattr(SuffixIndex, "following", spoilt)
    monkeypatch.setattr(BatchCosts, "best_length", lambda _self, _n, odds: rng.randint(0, len(odds)))


@pytest.fixture(scope="module")
def rows_alike() -> bool:
    """Whether llama.cpp computes several rows bit by bit as it computes each alone, for the demo on this machine."""
    ids = long_prompt(300)
    model = Model(demo_model(), 0)
    settings = {"n_ctx": 512, "n_seq_max": 1, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1}
    context = Context(model, **settings, kv_type="f16", flash_attention=None)
    different = 0
    for n in range(2, MOST_TOKENS + 1):
        entries = [BatchToken(token, position, 0, logits=True) for position, token in enumerate(ids)][: 250 + n]
        context.forget(0)
        context.decode(entries[:250])
        context.decode(entries[250:])
        together = [context.logits(i).copy() for i in range(n)]
        context.forget(0, 250)
        for row, entry in zip(together, entries[250:], strict=True):
            context.decode([entry])
            different += not np.array_equal(row, context.logits(0))
    context.close()
    model.close()
    return not different


@pytest.fixture
def exact(rows_alike: bool) -> None:
    """For tests that compare bits."""
    if not rows_alike:
        pytest.skip("llama.cpp computes several rows with other kernels than one on this machine")


def engine(drafts: bool | None, n_parallel: int = 1, n_ctx: int = 2048) -> Engine:
    return Engine(demo_model(), n_parallel=n_parallel, n_ctx=n_ctx, n_threads=1, drafts=drafts)


def without_stats(done: Completion) -> Completion:
    """All of an answer but its times."""
    return replace(done, stats=None)  # type: ignore[arg-type]


QUESTION = LONG_ANSWERS[0].instruction
WILD = SamplingParams(temperature=1.3, top_k=0, top_p=1.0, seed=5, max_tokens=120)
FREE_JSON = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]}
SETTINGS = {
    "greedy": GREEDY,
    "seed": replace(WILD, temperature=0.8, top_k=50),
    "wild": WILD,
    "repeat": replace(WILD, repeat_penalty=1.2),
    "penalties": replace(WILD, presence_penalty=0.7, frequency_penalty=0.4),
    "bias": replace(WILD, logit_bias={reference.END: -float("inf"), 300: 5.0}),
    "min_p": replace(WILD, min_p=0.05),
    "stop": replace(WILD, stop=("、", "ます", "never")),
    "json": replace(WILD, json_schema=FREE_JSON),
    "grammar": replace(GREEDY, grammar='root ::= ("あ" | "い" | "うえ")+'),
    "endless": replace(ENDLESS, max_tokens=300),
}


@pytest.mark.usefixtures("exact", "any_guesses")
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_answer_is_the_same_whatever_is_guessed(setting: str) -> None:
    """Bit by bit: text, tokens, log-probabilities, how it ended. It is asked three times, so there is much to guess."""
    params = SETTINGS[setting]
    with engine(False) as plain, engine(True) as drafting:
        for seed in (5, 6, 5):
            asked = replace(params, seed=seed) if params.seed else params
            expected, done = (one.generate(QUESTION, asked, logprobs=3) for one in (plain, drafting))
            assert without_stats(done) == without_stats(expected)
            assert done.stats.completion_tokens == expected.stats.completion_tokens
            assert expected.stats.drafted_tokens == 0
            assert done.stats.accepted_tokens <= done.stats.drafted_tokens
        assert done.stats.drafted_tokens > 0


@pytest.mark.usefixtures("exact", "any_guesses")
def test_a_conversation_is_the_same_and_keeps_its_cache() -> None:
    with engine(False) as plain, engine(True) as drafting:
        chats = [one.chat(params=replace(DRAWN, seed=3)) for one in (plain, drafting)]
        for pair in LONG_ANSWERS[:5]:
            expected, reply = (chat.send(pair.instruction) for chat in chats)
            assert (reply.text, reply.token_ids) == (expected.text, expected.token_ids)
            assert reply.stats.cached_tokens == expected.stats.cached_tokens


@pytest.mark.usefixtures("any_guesses")
@pytest.mark.parametrize(
    ("n_ctx", "n_parallel", "n_callers", "seed"), [(256, 1, 3, 1), (192, 3, 6, 2), (512, 3, 3, 3), (2048, 2, 6, 4)]
)
def test_random_loads_are_answered_as_if_each_were_alone(
    n_ctx: int, n_parallel: int, n_callers: int, seed: int
) -> None:
    """Answers that the demo knows by heart; some are cancelled, and in little room some are preempted."""
    rng = random.Random(seed)
    pairs = [rng.choice(LONG_ANSWERS[:10]) for _ in range(6 * n_callers)]
    wrong: list[str] = []
    stats = []
    with engine(True, n_parallel, n_ctx) as drafting:
        cells = Cells(drafting)

        def call(mine: Sequence[Pair], rng: random.Random) -> None:
            for pair in mine:
                with drafting.stream(pair.instruction, replace(GREEDY, max_tokens=5000)) as stream:
                    if rng.random() < 0.2:
                        next(stream)
                        continue
                    done = complete(list(stream))
                stats.append(done.stats)
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
        cells.check()
    assert wrong == []
    assert sum(one.accepted_tokens for one in stats) > 0
    if (n_ctx, n_parallel) == (192, 3):
        assert sum(one.preempted for one in stats) > 0


@pytest.mark.usefixtures("any_guesses")
def test_what_ends_in_the_middle_of_a_draft_ends_as_it_would_have() -> None:
    """By its length, a stop string, or a grammar and biases that leave no token: after any number of tokens."""
    known = LONG_ANSWERS[0]
    with engine(True) as drafting:
        whole = drafting.generate(known.instruction, GREEDY)
        for n in range(1, len(whole.token_ids)):
            done = drafting.generate(known.instruction, replace(GREEDY, max_tokens=n))
            assert (done.token_ids, done.finish_reason) == (whole.token_ids[:n], "length")
        for n in range(1, len(known.response), 5):
            stop = known.response[n : n + 3]
            done = drafting.generate(known.instruction, replace(GREEDY, stop=(stop,)))
            assert (done.text, done.finish_reason) == (known.response.partition(stop)[0], "stop")
        begin_with_x = [token for token in range(3000) if drafting.piece(token).startswith(b"x")]
        dead_end = replace(
            GREEDY,
            grammar=f"root ::= {json.dumps(known.response + 'x', ensure_ascii=False)}",
            logit_bias=dict.fromkeys(begin_with_x, -float("inf")),
        )
        with drafting.stream(known.instruction, dead_end) as stream, pytest.raises(SamplingError, match="No token"):
            list(stream)
        assert is_response(drafting.generate(known.instruction, GREEDY), known)


def quoting(n_tokens: int) -> tuple[list[int], SamplingParams]:
    """A prompt that has a text, and parameters that let nothing come out but this text."""
    text = "".join(pair.response for pair in LONG_ANSWERS[:4])[:n_tokens]
    grammar = f"root ::= {json.dumps(text, ensure_ascii=False)}"
    return reference.encode(f"{text}\n\n"), replace(GREEDY, grammar=grammar, max_tokens=1000)


@pytest.mark.usefixtures("free")
def test_what_the_prompt_has_is_quoted_in_few_steps() -> None:
    prompt, params = quoting(100)
    with engine(True) as drafting:
        stats = drafting.generate(prompt, params, raw=True).stats
    steps = stats.completion_tokens - stats.accepted_tokens
    assert stats.completion_tokens > 2 * steps


@pytest.mark.usefixtures("free")
def test_an_answer_that_was_given_before_comes_in_few_steps() -> None:
    with engine(True) as drafting:
        first, second = (drafting.generate(QUESTION, GREEDY).stats for _ in range(2))
    assert first.accepted_tokens < first.completion_tokens / 2
    assert second.accepted_tokens > 2 / 3 * second.completion_tokens


@pytest.mark.usefixtures("free")
def test_no_more_is_guessed_than_the_answer_may_have() -> None:
    """Beside a token that is there, the last one is chosen and not computed."""
    with engine(True) as drafting:
        drafting.generate(QUESTION, GREEDY)
        for n in range(1, 12):
            stats = drafting.generate(QUESTION, replace(GREEDY, max_tokens=n)).stats
            assert stats.drafted_tokens <= max(n - 2, 0)


def test_guesses_that_do_not_come_true_are_trusted_less() -> None:
    odds = {}
    for chosen in ([1, 2, 3], [1, 9], [9]):
        lookup = Lookup()
        for _ in range(50):
            lookup.guess = Guess(3, (1, 2, 3))
            lookup.read(chosen)
        odds[len(chosen)] = [*lookup.odds(), 0, 0, 0][:3]
    assert min(odds[3]) > 0.9
    assert odds[2][0] > 0.9
    assert odds[2][1] < 0.6
    assert odds[1][0] < 0.1


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize(
    ("drafts", "params", "expected"),
    [
        (None, DRAWN, True),
        (None, replace(DRAWN, seed=1), False),
        (None, GREEDY, False),
        (True, replace(DRAWN, seed=1), True),
        (True, GREEDY, True),
        (False, DRAWN, False),
    ],
)
def test_who_expects_the_same_answer_again_gets_no_drafts_unless_they_are_asked_for(
    drafts: bool | None, params: SamplingParams, expected: bool
) -> None:
    with engine(drafts) as one:
        drafted = [one.generate(QUESTION, params).stats.drafted_tokens for _ in range(2)]
    assert bool(drafted[-1]) is expected


def batches(drafting: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[BatchToken]]:
    """What the engine computes from now on."""
    seen: list[list[BatchToken]] = []
    decode = drafting._context.decode

    def noted(batch: Sequence[BatchToken]) -> bool:
        seen.append(list(batch))
        return decode(batch)

    monkeypatch.setattr(drafting._context, "decode", noted)
    return seen


@pytest.fixture
def many() -> Iterator[Engine]:
    with engine(True, MOST_GENERATING + 1) as drafting:
        yield drafting


@pytest.mark.usefixtures("free")
def test_with_many_callers_no_drafts_are_made(many: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    many.generate(QUESTION, GREEDY)
    seen = batches(many, monkeypatch)
    gate = Gate()
    streams = [many.stream(QUESTION, GREEDY, on_progress=gate) for _ in range(MOST_GENERATING + 1)]
    gate.wait()
    gate.open()
    for stream in streams:
        list(stream)
    together = [batch for batch in seen if len({entry.sequence for entry in batch}) == len(streams)]
    generating = [batch for batch in together if all(entry.logits for entry in batch)]
    assert generating
    assert {len(batch) for batch in generating} == {len(streams)}


@pytest.mark.usefixtures("free")
def test_beside_a_prompt_that_is_read_no_drafts_are_made(many: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its part of the step follows from what the generations take without them."""
    many.generate(QUESTION, GREEDY)
    with many.stream(QUESTION, replace(GREEDY, max_tokens=150)) as stream:
        next(stream)
        seen = batches(many, monkeypatch)
        many.generate(long_prompt(600), ONE, raw=True)
    for batch in seen:
        reading = {entry.sequence for entry in batch if not entry.logits}
        if reading:
            assert len([entry for entry in batch if entry.sequence not in reading]) <= 1


@pytest.mark.usefixtures("free")
def test_drafts_take_only_cells_that_are_free() -> None:
    """To the last cell of a context, and without forgetting what idle sequences remember."""
    with engine_of(1, n_ctx=256) as plain, engine(True, 2, 256) as drafting:
        drafting.generate(long_prompt(100), ONE, raw=True)
        before = drafting._scheduler._cache.n_free
        assert before == 256 - 100
        prompt, params = quoting(60)
        expected, done = (one.generate(prompt, params, raw=True) for one in (plain, drafting))
        assert done.token_ids == expected.token_ids
        assert drafting.generate(long_prompt(100), ONE, raw=True).stats.cached_tokens == 99
        endless = replace(ENDLESS, max_tokens=5000)
        expected, done = (one.generate(prompt, endless, raw=True) for one in (plain, drafting))
        assert len(done.token_ids) == len(expected.token_ids) == 256 - len(prompt)


@pytest.mark.usefixtures("free")
def test_a_cancelled_answer_leaves_no_drafted_cells_behind() -> None:
    with engine(True) as drafting:
        cells = Cells(drafting)
        drafting.generate(QUESTION, GREEDY)
        for _ in range(10):
            stream = drafting.stream(QUESTION, GREEDY)
            next(stream)
            stream.cancel()
            end_of(stream)
            cells.check()
        assert is_response(drafting.generate(SHORT_ANSWERS[0].instruction, GREEDY), SHORT_ANSWERS[0])


def test_earlier_answers_are_kept_within_a_bound() -> None:
    with engine(True) as drafting:
        drafts = drafting._scheduler._roster.drafts
        drafting.generate(QUESTION, GREEDY)
        answer = drafting.tokenize(LONG_ANSWERS[0].response)
        assert drafts._earlier[0].tokens == [*answer, END]
        for _ in range(3 * REMEMBERED // len(answer)):
            drafting._scheduler.call(lambda: drafts._earlier[0].extend(answer))
            drafting.generate(SHORT_ANSWERS[0].instruction, GREEDY)
        kept = sum(len(index.tokens) for index in drafts._earlier)
    assert REMEMBERED <= kept <= 2 * REMEMBERED + 1000
