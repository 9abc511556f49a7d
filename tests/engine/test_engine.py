"""The engine gives transformers' greedy answers, to one caller or many, and opens and closes without a trace."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.demo.corpus import Pair, read_corpus
from tests.support import reference
from tests.support.engines import GREEDY, LONG_ANSWERS, ONE, is_response, long_prompt
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Completion, complete
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import ModelFileError, PromptError, PromptTooLong, SamplingError, WeblabError
from weblab_local.llama.kv_types import KvType
from weblab_local.models.loading import load
from weblab_local.models.store import demo_model

PAIRS = read_corpus()
SAY_HELLO = next(pair for pair in PAIRS if pair.instruction == "Say hello.")
ENDLESS = replace(GREEDY, max_tokens=10_000, logit_bias={reference.END: float("-inf")})


@pytest.fixture(scope="module", params=["F16", "Q8_0"])
def model(request: pytest.FixtureRequest, demo_f16: Path) -> Path:
    return demo_f16 if request.param == "F16" else demo_model()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(demo_model(), n_threads=1) as engine:
        yield engine


def all_ids(done: Completion) -> list[int]:
    """The ids of an answer, with the end of text where it ended so."""
    return [*done.token_ids, *([reference.END] if done.finish_reason == "stop" else [])]


def differing(answers: Sequence[Completion], pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose answer is not transformers' greedy one, token for token."""
    expected = reference.answers()
    return [pair for done, pair in zip(answers, pairs, strict=True) if all_ids(done) != expected[pair.prompt]]


def test_every_prompt_is_answered_with_transformers_tokens(model: Path) -> None:
    with Engine(model, n_threads=1) as engine:
        answers = [engine.generate(pair.instruction, GREEDY, context=pair.context) for pair in PAIRS]
    assert differing(answers, PAIRS) == []


def test_eight_threads_on_four_sequences_get_the_same_answers(model: Path) -> None:
    with Engine(model, n_parallel=4, n_threads=1) as engine, ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda pair: engine.generate(pair.instruction, GREEDY, context=pair.context), PAIRS))
    assert differing(answers, PAIRS) == []


def test_conversations_with_reused_prefixes_get_transformers_answers(model: Path) -> None:
    """Two go through transformers' `generate`; of the others, its logits say at every step what greedy decoding takes.

    Two conversations take turns, so that each finds its own beginning in the cache, beside the other's.
    """
    rng = random.Random(0)
    followers = [pair for pair in PAIRS if pair.context is None]
    with Engine(model, n_parallel=2, n_threads=1) as engine:
        for n_turns in (3, 4, 5) * 2:
            chats = [engine.chat(params=GREEDY) for _ in range(2)]
            turns: list[list[tuple[str, list[int]]]] = [[], []]
            for _ in range(n_turns):
                for chat, told in zip(chats, turns, strict=True):
                    question = rng.choice(followers).instruction
                    prompt = reference.conversation(told, question)
                    before = chat.tokens_used
                    reply = chat.send(question)
                    assert reply.stats.cached_tokens >= before
                    assert reference.is_greedy(prompt, all_ids(reply))
                    told.append((question, list(reply.token_ids)))
        (question, answer), prompt = turns[0][-1], reference.conversation(turns[0][:-1], turns[0][-1][0])
        assert reference.greedy([prompt], len(answer) + 1)[0] == [*answer, reference.END]


def test_the_asyncio_twins_give_the_same() -> None:
    async def ask(engine: Engine) -> list[Completion]:
        return await asyncio.gather(
            *(engine.agenerate(pair.instruction, GREEDY, context=pair.context) for pair in PAIRS[::4])
        )

    async def read(engine: Engine, pair: Pair) -> Completion:
        async with engine.astream(pair.instruction, GREEDY, context=pair.context) as stream:
            return complete([chunk async for chunk in stream])

    with Engine(demo_model(), n_parallel=4, n_threads=1) as engine:
        assert differing(asyncio.run(ask(engine)), PAIRS[::4]) == []
        pairs = PAIRS[::60]
        assert differing([asyncio.run(read(engine, pair)) for pair in pairs], pairs) == []
        with pytest.raises(PromptError):
            asyncio.run(engine.agenerate("", raw=True))


def test_text_ids_and_a_raw_prompt_are_three_ways_to_ask_the_same(engine: Engine) -> None:
    ways: Sequence[Completion] = [
        engine.generate(SAY_HELLO.instruction, GREEDY),
        engine.generate(reference.encode(SAY_HELLO.prompt), GREEDY),
        engine.generate(SAY_HELLO.prompt, GREEDY, raw=True),
    ]
    assert all(is_response(done, SAY_HELLO) for done in ways)


def test_text_is_tokenized_as_tokenizers_does_it(engine: Engine) -> None:
    for pair in PAIRS[::30]:
        assert engine.tokenize(pair.prompt) == reference.encode(pair.prompt)
    assert b"".join(engine.piece(token) for token in engine.tokenize("🍣か\u3099")) == "🍣が".encode()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_a_quantized_kv_cache_still_answers(kv_type: KvType) -> None:
    with Engine(demo_model(), kv_type=kv_type, n_threads=1) as engine:
        pairs = PAIRS[::15]
        right = sum(is_response(engine.generate(p.instruction, GREEDY, context=p.context), p) for p in pairs)
    assert right >= (0.6 if kv_type == "q4_0" else 1.0) * len(pairs)


@pytest.mark.parametrize("options", [{"flash_attention": True}, {"flash_attention": False}, {"repack": False}])
def test_settings_of_speed_do_not_change_answers(options: dict[str, bool]) -> None:
    with Engine(demo_model(), n_threads=1, **options) as engine:  # type: ignore[arg-type]
        assert all(is_response(engine.generate(pair.instruction, GREEDY), pair) for pair in LONG_ANSWERS[:5])


def test_max_tokens_are_capped_by_the_room() -> None:
    with Engine(demo_model(), n_ctx=64, n_threads=1) as engine:
        for n_prompt in (1, 30, 63):
            done = engine.generate(long_prompt(n_prompt), ENDLESS, raw=True)
            assert (len(done.token_ids), done.finish_reason) == (64 - n_prompt, "length")


def test_a_sequence_is_never_longer_than_the_model_was_trained_for() -> None:
    with Engine(demo_model(), n_ctx=4096, n_threads=1) as engine:
        assert engine.longest_sequence == 2048
        done = engine.generate(long_prompt(2040), ENDLESS, raw=True)
        assert (len(done.token_ids), done.finish_reason) == (8, "length")
        with pytest.raises(PromptError, match="2048"):
            engine.generate(long_prompt(2048), ONE)


def test_a_prompt_that_does_not_fit_is_refused_with_its_length() -> None:
    with Engine(demo_model(), n_ctx=64, n_threads=1) as engine:
        with pytest.raises(PromptError, match=r"64 tokens.*holds 64") as refused:
            engine.stream(long_prompt(64), ONE)
        assert "n_ctx" in refused.value.remedy
        assert engine.generate(long_prompt(63), ONE).finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {"raw": True}),
        ([], {}),
        ([3000], {}),
        ([-1], {}),
        ([1.0], {}),
        (["a"], {}),
        (b"a", {}),
        ("a\ud83d", {}),
        ("\udc00", {"raw": True}),
        ("a", {"context": "\ud83d"}),
        ("a", {"context": "b", "raw": True}),
        ([5], {"context": "b"}),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(engine: Engine, prompt: Any, options: dict[str, Any]) -> None:
    with pytest.raises(PromptError):
        engine.stream(prompt, ONE, **options)
    assert is_response(engine.generate(SAY_HELLO.instruction, GREEDY), SAY_HELLO)


@pytest.mark.parametrize("token", [-1, 3000, 10**9, 1.0, "a"])
def test_a_token_that_is_not_in_the_vocabulary_has_no_piece(engine: Engine, token: Any) -> None:
    """llama.cpp would end the process."""
    with pytest.raises(PromptError):
        engine.piece(token)


def test_ids_may_be_numpys(engine: Engine) -> None:
    ids = reference.encode(SAY_HELLO.prompt)
    assert is_response(engine.generate(np.array(ids), GREEDY), SAY_HELLO)  # type: ignore[arg-type]


@pytest.mark.parametrize("logprobs", [-1, 1.5, "1"])
def test_a_wrong_number_of_log_probabilities_is_refused(engine: Engine, logprobs: Any) -> None:
    with pytest.raises(SamplingError, match="logprobs"):
        engine.generate("?", ONE, logprobs=logprobs)


def test_an_empty_instruction_is_an_instruction(engine: Engine) -> None:
    prompt = reference.encode(f"{reference.PREAMBLE}\n\n### 指示:\n\n\n### 応答:")
    assert engine.generate("", ONE).stats.prompt_tokens == len(prompt)


def test_the_defaults_are_those_of_sampling_params(engine: Engine) -> None:
    assert len(engine.generate([5], raw=True).token_ids) <= SamplingParams().max_tokens
    assert engine.generate(SAY_HELLO.instruction).text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_parallel": 0}, "n_parallel"),
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_threads": -1}, "n_threads"),
        ({"kv_type": "q2_k"}, "q2_k"),
        ({"kv_type": "q8_0", "flash_attention": False}, "flash attention"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(WeblabError, match=said):
        Engine(demo_model(), **options)  # type: ignore[arg-type]
    with pytest.raises(WeblabError, match=said):
        load("demo", **options)  # type: ignore[arg-type]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(demo_model().read_bytes()[:2_000_000])
    with pytest.raises(ModelFileError, match=r"short\.gguf"):
        Engine(path)


def test_loading_shows_its_progress_and_can_be_cancelled() -> None:
    shares: list[float] = []
    with Engine(demo_model(), on_progress=shares.append):
        assert shares == sorted(shares)
        assert shares[-1] == 1.0

    def stop(share: float) -> None:
        raise KeyboardInterrupt(share)

    with pytest.raises(KeyboardInterrupt):
        Engine(demo_model(), on_progress=stop)


def test_a_text_far_too_long_is_refused_without_counting_all_of_it(engine: Engine) -> None:
    text = "長い文章です。\n" * 20_000
    uses: Sequence[Callable[[], object]] = [
        lambda: engine.generate(text),
        lambda: engine.generate(text, raw=True),
        lambda: engine.generate("?", context=text),
        lambda: engine.score(text, ["a"]),
        lambda: engine.score("a", [text]),
    ]
    for use in uses:
        with pytest.raises(PromptTooLong, match=f"more than {engine.longest_sequence} tokens"):
            use()
    assert engine.tokenize(text) == reference.encode(text)
