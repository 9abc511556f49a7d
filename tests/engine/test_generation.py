"""What a request gives: text in whole characters, tokens, log-probabilities, the reason of its end, counts."""

import asyncio
import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.demo.corpus import Pair, read_corpus
from tests.support import reference
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import AsyncGeneration, Chunk, Generation, Stats, complete
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import SamplingError

PAIRS = read_corpus()
EMOJI = [pair for pair in PAIRS if any(ord(character) > 0xFFFF for character in pair.response)]
GREEDY = SamplingParams(temperature=0, max_tokens=256)
RANDOM = SamplingParams(temperature=20, top_k=0, top_p=1, max_tokens=60, logit_bias={reference.END: float("-inf")})
"""Nearly any token may come next: most are parts of characters."""


@pytest.fixture(scope="module")
def engine(demo_f16: Path) -> Iterator[Engine]:
    with Engine(demo_f16, n_parallel=2, n_threads=1) as engine:
        yield engine


def pair_of(instruction: str) -> Pair:
    return next(pair for pair in PAIRS if pair.instruction == instruction)


def test_chunks_are_whole_characters_and_together_the_text_and_the_tokens(engine: Engine) -> None:
    for pair in EMOJI[:8]:
        whole = engine.generate(pair.instruction, GREEDY, context=pair.context)
        chunks = list(engine.stream(pair.instruction, GREEDY, context=pair.context))
        assert all(chunk.text for chunk in chunks[:-1])
        assert all(chunk.finish_reason is None and chunk.stats is None for chunk in chunks[:-1])
        assert not any("\ufffd" in chunk.text for chunk in chunks)
        assert "".join(chunk.text for chunk in chunks) == whole.text == reference.decode(whole.token_ids)
        assert [token for chunk in chunks for token in chunk.token_ids] == list(whole.token_ids)
        assert chunks[-1].finish_reason == whole.finish_reason == "stop"


def test_the_text_of_random_tokens_is_what_tokenizers_decodes(engine: Engine) -> None:
    broken = 0
    for seed in range(25):
        chunks = list(engine.stream("何か。", replace(RANDOM, seed=seed), raw=True))
        done = complete(chunks)
        assert all(chunk.text for chunk in chunks[:-1])
        assert len(done.token_ids) == 60
        assert done.text == reference.decode(done.token_ids)
        broken += "\ufffd" in done.text
    assert broken > 20


def test_an_unfinished_character_at_the_end_is_one_replacement_character(engine: Engine) -> None:
    pair = pair_of("寿司、桜、電車を絵文字にしてください。")
    ids = reference.answer_ids(pair)
    assert len(ids) > len(pair.response)
    unfinished = 0
    for max_tokens in range(1, len(ids) + 1):
        done = engine.generate(pair.instruction, replace(GREEDY, max_tokens=max_tokens))
        assert list(done.token_ids) == ids[:max_tokens]
        assert done.finish_reason == "length"
        assert done.text == reference.decode(ids[:max_tokens])
        assert pair.response.startswith(done.text.removesuffix("\ufffd"))
        unfinished += done.text.endswith("\ufffd")
    assert unfinished >= 3


def test_long_tokens_come_out_whole(engine: Engine) -> None:
    (token,) = reference.encode(" " * 24)
    done = engine.generate("空白", replace(GREEDY, logit_bias={token: 100}, max_tokens=3))
    assert done.text == " " * 72


def test_the_end_of_text_token_ends_an_answer_and_is_no_part_of_it(engine: Engine) -> None:
    done = engine.generate("Say hello.", GREEDY)
    assert (done.text, done.finish_reason) == (pair_of("Say hello.").response, "stop")
    assert reference.END not in done.token_ids
    at_once = engine.generate("Say hello.", replace(GREEDY, logit_bias={reference.END: 100}))
    assert (at_once.text, at_once.token_ids, at_once.finish_reason) == ("", (), "stop")
    assert at_once.stats.completion_tokens == 0
    assert at_once.stats.generation_speed == 0


@pytest.mark.parametrize("line_breaks", [0, 1, 2])
def test_a_generated_instruction_ends_an_answer(engine: Engine, line_breaks: int) -> None:
    following = "\\n" * line_breaks + "### 指示:"
    params = replace(GREEDY, grammar=f'root ::= "答え{following}\\n次の指示"')
    chunks = list(engine.stream("?", params))
    assert "".join(chunk.text for chunk in chunks) == "答え"
    assert chunks[-1].finish_reason == "stop"
    assert all(chunk.text for chunk in chunks[:-1])


def test_what_only_begins_like_an_instruction_comes_out(engine: Engine) -> None:
    for ending in ("\n\n### 応答:", "\n\n### 指", "\n", "\n\n### 指示"):
        literal = ending.replace("\n", "\\n")
        done = engine.generate("?", replace(GREEDY, grammar=f'root ::= "答え{literal}"'))
        assert (done.text, done.finish_reason) == (f"答え{ending}", "stop")


def test_held_back_text_comes_out_when_max_tokens_end_the_answer(engine: Engine) -> None:
    params = replace(GREEDY, grammar='root ::= "答え\\n\\n### 指示:"')
    ids = engine.generate("?", params).token_ids
    for max_tokens in range(1, len(ids)):
        done = engine.generate("?", replace(params, max_tokens=max_tokens))
        assert (done.text, done.finish_reason) == (reference.decode(ids[:max_tokens]), "length")


def test_a_raw_completion_goes_on_past_an_instruction(engine: Engine) -> None:
    params = replace(GREEDY, grammar='root ::= "答え\\n\\n### 指示:\\n次"')
    assert engine.generate("?", params, raw=True).text == "答え\n\n### 指示:\n次"


@pytest.mark.parametrize(
    "instruction", ["寿司、桜、電車を絵文字にしてください。", "PythonでHello, world!と表示するには？", "Say hello."]
)
def test_a_stop_string_ends_an_answer_wherever_its_tokens_begin_and_end(engine: Engine, instruction: str) -> None:
    """Every string of 1 to 4 characters of the answer: also those split over tokens, and those ending inside of one."""
    pair = pair_of(instruction)
    answer = pair.response
    for length in (1, 2, 4):
        for start in range(0, len(answer) - length + 1, length):
            stop = answer[start : start + length]
            chunks = list(engine.stream(instruction, replace(GREEDY, stop=stop)))
            done = complete(chunks)
            assert (done.text, done.finish_reason) == (answer[: answer.find(stop)], "stop")
            assert all(chunk.text for chunk in chunks[:-1])
            generated = reference.decode(done.token_ids)
            assert stop in generated
            assert stop not in reference.decode(done.token_ids[:-1])


def test_of_several_stop_strings_the_first_one_counts(engine: Engine) -> None:
    pair = pair_of("大規模言語モデルについて説明してください。")
    stops = ["無い文字列", "人工知能", "予測", "予測する"]
    done = engine.generate(pair.instruction, replace(GREEDY, stop=stops))
    assert done.text == pair.response[: pair.response.index("予測")]


def test_log_probabilities_are_those_of_transformers(engine: Engine) -> None:
    for pair in PAIRS[::50]:
        done = engine.generate(pair.instruction, GREEDY, context=pair.context, logprobs=5)
        prompt = reference.encode(pair.prompt)
        logits = reference.logits([*prompt, *done.token_ids])[len(prompt) - 1 :].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        assert [entry.token_id for entry in done.logprobs] == list(done.token_ids)
        # Relative, too: how llama.cpp rounds depends on the processor, and shows most in unlikely tokens.
        for entry, row in zip(done.logprobs, expected, strict=False):
            assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-2, rel=2e-3)
            assert [logprob for _, logprob in entry.top] == pytest.approx(
                np.sort(row)[::-1][:5].tolist(), abs=1e-2, rel=2e-3
            )
            assert all(logprob == pytest.approx(row[token], abs=1e-2, rel=2e-3) for token, logprob in entry.top)
            assert [logprob for _, logprob in entry.top] == sorted((p for _, p in entry.top), reverse=True)
            assert entry.top[0] == (entry.token_id, entry.logprob)


def test_as_many_alternatives_come_as_were_asked_for(engine: Engine) -> None:
    short = replace(GREEDY, max_tokens=3)
    assert engine.generate("Say hello.", short).logprobs == ()
    for n_top in (0, 1, 20, 3000):
        done = engine.generate("Say hello.", short, logprobs=n_top)
        assert [len(entry.top) for entry in done.logprobs] == [n_top] * len(done.token_ids)
    assert sum(np.exp([logprob for _, logprob in done.logprobs[0].top])) == pytest.approx(1.0)
    with pytest.raises(SamplingError, match="logprobs"):
        engine.generate("Say hello.", short, logprobs=-1)


def test_log_probabilities_do_not_depend_on_the_sampling(engine: Engine) -> None:
    plain = engine.generate("Say hello.", replace(GREEDY, max_tokens=1), logprobs=3).logprobs[0]
    biased = engine.generate("Say hello.", replace(GREEDY, max_tokens=1, logit_bias={66: 100}), logprobs=3).logprobs[0]
    assert biased.token_id == 66
    assert [token for token, _ in biased.top] == [token for token, _ in plain.top]
    assert biased.logprob < biased.top[0][1]


def test_log_probabilities_come_with_the_chunk_of_their_tokens(engine: Engine) -> None:
    for pair in EMOJI[:3]:
        for chunk in engine.stream(pair.instruction, GREEDY, context=pair.context, logprobs=0):
            assert [entry.token_id for entry in chunk.logprobs] == list(chunk.token_ids)


def test_the_last_chunk_counts_tokens_and_time(engine: Engine) -> None:
    pair = pair_of("大規模言語モデルについて説明してください。")
    started = time.perf_counter()
    done = engine.generate(pair.instruction, GREEDY)
    seconds = time.perf_counter() - started
    stats = done.stats
    assert stats.prompt_tokens == len(reference.encode(pair.prompt))
    assert stats.completion_tokens == len(done.token_ids) == len(reference.answer_ids(pair))
    assert 0 <= stats.cached_tokens < stats.prompt_tokens
    assert stats.prompt_speed > 0
    assert stats.generation_speed > 0
    assert 0 < stats.prompt_seconds <= stats.time_to_first_token
    assert stats.time_to_first_token + stats.generation_seconds <= seconds


def test_speeds_are_counts_by_times() -> None:
    stats = Stats(110, 10, 21, 2.0, 4.0, 2.5)
    assert (stats.prompt_speed, stats.generation_speed) == (50.0, 5.0)
    nothing = Stats(110, 0, 0, 0.0, 0.0, 0.0)
    assert (nothing.prompt_speed, nothing.generation_speed) == (0.0, 0.0)


def test_a_completion_needs_the_last_chunk() -> None:
    for chunks in ([], [Chunk("a", (1,))]):
        with pytest.raises(ValueError, match="last chunk"):
            complete(chunks)


class Cancelled:
    """Stands for the engine behind a generation: counts how often it is cancelled."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


END = Chunk("", (), finish_reason="stop", stats=Stats(1, 0, 1, 1.0, 1.0, 1.0))


def test_letting_go_of_a_generation_cancels_it() -> None:
    cancelled = Cancelled()
    generation = Generation(cancelled)
    generation.emit(Chunk("a", (1,)))
    for _ in generation:
        break
    del generation
    gc.collect()
    assert cancelled.times == 1


def test_a_generation_that_ended_is_not_cancelled_when_it_goes() -> None:
    cancelled = Cancelled()
    generation = Generation(cancelled)
    generation.emit(END)
    assert list(generation) == [END]
    assert list(generation) == []
    del generation
    gc.collect()
    assert cancelled.times == 0


def test_a_generation_raises_its_error_once() -> None:
    generation = Generation(Cancelled())
    generation.emit(Chunk("a", (1,)))
    generation.emit(KeyError("x"))
    assert next(generation).text == "a"
    with pytest.raises(KeyError):
        next(generation)
    assert list(generation) == []


def test_leaving_the_context_of_a_generation_cancels_it_and_ends_it() -> None:
    cancelled = Cancelled()
    with Generation(cancelled) as generation:
        generation.emit(Chunk("a", (1,)))
    assert cancelled.times == 1
    assert list(generation) == []


def test_an_async_generation_does_all_that_too() -> None:
    async def run() -> None:
        cancelled = Cancelled()
        async with AsyncGeneration(cancelled, asyncio.get_running_loop()) as generation:
            generation.emit(Chunk("a", (1,)))
            assert (await anext(generation)).text == "a"
        assert cancelled.times == 1
        assert [chunk async for chunk in generation] == []

        failing = AsyncGeneration(cancelled, asyncio.get_running_loop())
        failing.emit(KeyError("x"))
        with pytest.raises(KeyError):
            await anext(failing)
        assert [chunk async for chunk in failing] == []

        waiting = asyncio.ensure_future(anext(AsyncGeneration(cancelled, asyncio.get_running_loop())))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert cancelled.times == 2

    asyncio.run(run())


def test_events_for_a_loop_that_was_closed_are_dropped() -> None:
    async def make() -> AsyncGeneration:
        return AsyncGeneration(Cancelled(), asyncio.get_running_loop())

    asyncio.run(make()).emit(END)
