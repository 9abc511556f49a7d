"""`Engine.score`: log-probabilities of given continuations, beside transformers' on the same tokens."""

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from convert.demo.corpus import Pair, read_corpus
from tests.support import reference
from tests.support.conversions import converted
from tests.support.engines import GREEDY, LONG_ANSWERS, PATIENCE, SHORT_ANSWERS, hold, is_response, long_prompt, running
from weblab_local.engine.engine import Engine
from weblab_local.errors import PromptError, WeblabError
from weblab_local.models.loading import load

PAIRS = read_corpus()


@pytest.fixture(scope="module")
def engine(demo_f16: Path) -> Iterator[Engine]:
    """One sequence."""
    with Engine(demo_f16, n_threads=1) as engine:
        yield engine


@pytest.fixture
def four(demo_f16: Path) -> Iterator[Engine]:
    """Four sequences, which remember nothing yet."""
    with Engine(demo_f16, n_parallel=4, n_ctx=4096, n_threads=1) as engine:
        yield engine


def expected(context: Sequence[int], continuation: Sequence[int]) -> tuple[list[float], bool]:
    """transformers' log-probabilities of the continuation's tokens, and whether each is the likeliest."""
    logits = reference.logits([*context, *continuation[:-1]])[len(context) - 1 :].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows = np.arange(len(continuation))
    return logprobs[rows, continuation].tolist(), bool((logits.argmax(axis=1) == continuation).all())


def question_of(pair: Pair) -> list[int]:
    return reference.encode(pair.prompt)


def test_log_probabilities_are_those_of_transformers(engine: Engine) -> None:
    rng = random.Random(1)
    for pair in rng.sample(PAIRS, 20):
        context = question_of(pair)
        answers = [reference.encode(pair.response), *(reference.encode(rng.choice(PAIRS).response) for _ in range(3))]
        for score, answer in zip(engine.score(context, answers), answers, strict=True):
            logprobs, is_greedy = expected(context, answer)
            assert score.logprobs == pytest.approx(logprobs, abs=0.02)
            assert score.loglikelihood == pytest.approx(sum(logprobs), abs=0.05)
            assert score.is_greedy == is_greedy


def test_loaded_for_prompts_a_model_scores_as_it_does_for_a_chat(tmp_path: Path, demo_checkpoint: Path) -> None:
    (path,) = converted(demo_checkpoint, tmp_path, "Q4_K_M")
    with (
        load(str(path), n_threads=1) as chat,
        load(str(path), n_threads=1, workload="prompt") as prompt,
        load(str(path), n_threads=1, workload="prompt", repack=True) as rearranged,
    ):
        for pair, other in pairwise(LONG_ANSWERS[:5]):
            texts = question_of(pair), [reference.encode(text) for text in (pair.response, other.response)]
            usual = chat.score(*texts)
            for engine in (prompt, rearranged):
                for score, as_usual in zip(engine.score(*texts), usual, strict=True):
                    assert score.logprobs == pytest.approx(as_usual.logprobs, rel=0.02, abs=0.05)


def test_greedy_answers_are_said_to_be_greedy(engine: Engine) -> None:
    for pair in SHORT_ANSWERS[:5]:
        ids = engine.generate(pair.instruction, GREEDY).token_ids
        right, wrong = engine.score(question_of(pair), [ids, [*ids[:-1], ids[-1] + 1]])
        assert (right.is_greedy, wrong.is_greedy) == (True, False)


def test_texts_are_tokenized_each_on_its_own_without_a_template(engine: Engine) -> None:
    by_text = engine.score("日本で一番高い山は", ["富士山", " 富士山です。"])
    by_ids = engine.score(
        reference.encode("日本で一番高い山は"), [reference.encode(t) for t in ("富士山", " 富士山です。")]
    )
    for text, ids in zip(by_text, by_ids, strict=True):
        assert text.logprobs == pytest.approx(ids.logprobs, abs=0.001)  # batches are cut differently by what is cached


@pytest.mark.parametrize("n_parallel", [1, 4])
def test_a_context_is_computed_once_for_all_its_continuations(demo_f16: Path, n_parallel: int) -> None:
    context, tails = long_prompt(300), [[10 * n + i for i in range(5)] for n in range(1, 7)]
    with Engine(demo_f16, n_parallel=n_parallel, n_ctx=4096, n_threads=1) as engine:
        scores = engine.score(context, tails)
    computed = sum(score.stats.prompt_tokens - score.stats.cached_tokens for score in scores)
    again = len(tails) - 1  # the context's last token, for what follows it
    assert computed == len(context) + again + sum(len(tail) - 1 for tail in tails)
    for score, tail in zip(scores, tails, strict=True):
        assert score.logprobs == pytest.approx(expected(context, tail)[0], abs=0.02)


def test_continuations_longer_than_a_batch_and_of_one_token(engine: Engine) -> None:
    long = long_prompt(1000, seed=3)
    for context, continuation in (([0], long), (long, [7]), (long[:200], long[200:]), ([5], [6])):
        (score,) = engine.score(context, [continuation])
        assert score.logprobs == pytest.approx(expected(context, continuation)[0], abs=0.02)


def test_a_full_context_can_be_scored_and_one_token_more_cannot(engine: Engine) -> None:
    ids = long_prompt(2050)
    (score,) = engine.score(ids[:2000], [ids[2000:2049]])
    assert len(score.logprobs) == 49
    assert score.stats.prompt_tokens == 2048
    with pytest.raises(PromptError, match="2049 tokens"):
        engine.score(ids[:2000], [[1], ids[2000:2050]])


def test_nothing_to_score_or_no_context_is_refused(engine: Engine) -> None:
    assert engine.score([1, 2], []) == []
    for context, continuation in (([], [1]), ([1], []), ("", "a"), ("a", "")):
        with pytest.raises(PromptError, match="empty"):
            engine.score(context, [continuation])
    with pytest.raises(PromptError, match="no token id"):
        engine.score([1], [[10**6]])


def test_scores_and_answers_beside_each_other_are_those_of_each_alone(four: Engine) -> None:
    asked = LONG_ANSWERS[:8]
    tasks = [(question_of(pair), [reference.encode(other.response) for other in asked[:4]]) for pair in asked]
    alone = [[score.loglikelihood for score in four.score(*task)] for task in tasks]
    with ThreadPoolExecutor(16) as callers:
        answers = [callers.submit(four.generate, pair.instruction, GREEDY, context=pair.context) for pair in asked]
        scores = [callers.submit(four.score, *task) for task in tasks]
        assert all(is_response(done.result(), pair) for done, pair in zip(answers, asked, strict=True))
        together = [[score.loglikelihood for score in done.result()] for done in scores]
    for before, beside in zip(alone, together, strict=True):
        assert beside == pytest.approx(before, abs=0.05)


def test_what_was_scored_is_a_prefix_for_whoever_comes_next(engine: Engine) -> None:
    pair = LONG_ANSWERS[0]
    engine.score(question_of(pair), [reference.encode(pair.response)])
    done = engine.generate(pair.instruction, GREEDY)
    assert is_response(done, pair)
    assert done.stats.cached_tokens == len(question_of(pair)) - 1


def test_an_interrupted_score_leaves_nothing_running(four: Engine) -> None:
    gate, holding = hold(four)
    failed: list[BaseException] = []

    def score() -> None:
        try:
            four.score(long_prompt(1000), [[1, 2], [3, 4], [5, 6], [7, 8]])
        except BaseException as error:
            failed.append(error)

    waiting = threading.Thread(target=score)
    waiting.start()
    closing = threading.Thread(target=four.close)
    closing.start()
    gate.open()
    for thread in (waiting, closing):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    (error,) = failed
    assert isinstance(error, WeblabError)
    holding.close()


def test_an_exception_while_waiting_cancels_what_was_submitted(four: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from weblab_local.engine.generation import Generation

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "_next_event", interrupt)
    with pytest.raises(KeyboardInterrupt):
        four.score(long_prompt(1000), [[1, 2], [3, 4]])
    assert running(four) == 0
