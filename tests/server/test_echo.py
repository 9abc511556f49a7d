"""`echo`: the prompt comes back with log-probabilities of its own tokens, beside transformers' on the same ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.server.support import Running, serving
from tests.support import reference
from tests.support.engines import LONG_ANSWERS, PAIRS, hold, long_prompt
from weblab_local.engine.engine import Engine

LONG, SHORT = LONG_ANSWERS[0], PAIRS[0]


@pytest.fixture(scope="module")
def server(demo_f16: Path) -> Iterator[Running]:
    """The demo with its weights as they are, two answers at a time."""
    with Engine(demo_f16, n_parallel=2, n_ctx=2048, n_threads=1) as engine, serving(engine) as running:
        yield running


def ask(server: Running, prompt: Any, **options: Any) -> Any:
    create: Any = server.client.completions.create
    return create(**{"model": "default", "prompt": prompt, "temperature": 0, "echo": True} | options)


def expected(ids: Sequence[int]) -> list[float]:
    """transformers' log-probabilities of all tokens but the first."""
    logits = reference.logits(ids[:-1]).astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return [float(x) for x in logprobs[np.arange(len(ids) - 1), ids[1:]]]


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("as_text", [False, True])
def test_log_probabilities_of_the_prompt_are_those_of_transformers(
    server: Running, max_tokens: int, as_text: bool
) -> None:
    text = LONG.prompt + LONG.response[:20]
    ids = reference.encode(text)
    done = ask(server, text if as_text else ids, max_tokens=max_tokens, logprobs=2)
    found = done.choices[0].logprobs
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    assert found.token_logprobs[1 : len(ids)] == pytest.approx(expected(ids), abs=0.02)
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(ids) + max_tokens
    assert all(len(top) == 2 for top in found.top_logprobs[1:])
    entries = list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))[1:]
    assert all(top[token] == logprob for token, logprob, top in entries if token in top)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids), max_tokens)
    assert done.choices[0].finish_reason == "length"
    answer = ask(server, ids, max_tokens=max_tokens or 1, echo=False).choices[0].text if max_tokens else ""
    assert done.choices[0].text == text + answer
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert token.startswith("bytes:") or done.choices[0].text[offset:].startswith(token)


def test_an_answer_that_ends_at_once_has_an_entry_for_its_end(server: Running) -> None:
    """Who reads the entries up to the last but one, as lm-eval does, would lose one of the prompt's."""
    ids = reference.encode(SHORT.prompt + SHORT.response)
    done = ask(server, ids, max_tokens=1, logprobs=1)
    assert done.choices[0].text == SHORT.prompt + SHORT.response
    assert done.choices[0].finish_reason == "stop"
    found = done.choices[0].logprobs
    assert len(found.token_logprobs) == len(ids) + 1
    assert found.token_logprobs[1:] == pytest.approx(expected([*ids, reference.END]), abs=0.02)


def test_a_stop_string_has_no_such_entry(server: Running) -> None:
    ids = reference.encode(LONG.prompt)
    stop = LONG.response[5:7]
    whole = ask(server, ids, max_tokens=60, logprobs=0, stop=stop, echo=False)
    done = ask(server, ids, max_tokens=60, logprobs=0, stop=stop)
    assert done.choices[0].text == LONG.prompt + whole.choices[0].text
    assert len(done.choices[0].logprobs.tokens) == len(ids) + len(whole.choices[0].logprobs.tokens)


def test_several_prompts_and_answers(server: Running) -> None:
    prompts = [reference.encode(pair.prompt) for pair in PAIRS[:3]]
    done = ask(server, prompts, n=2, max_tokens=0, logprobs=1)
    assert [choice.text for choice in done.choices] == [pair.prompt for pair in PAIRS[:3] for _ in range(2)]
    for index, choice in enumerate(done.choices):
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected(prompts[index // 2]), abs=0.02)


def test_a_stream_says_the_same(server: Running) -> None:
    whole = ask(server, SHORT.prompt, max_tokens=40, logprobs=1).choices[0]
    text, tokens, logprobs, offsets = "", [], [], []
    for chunk in ask(server, SHORT.prompt, max_tokens=40, logprobs=1, stream=True):
        text += chunk.choices[0].text
        tokens += chunk.choices[0].logprobs.tokens
        logprobs += chunk.choices[0].logprobs.token_logprobs
        offsets += chunk.choices[0].logprobs.text_offset
    assert (text, tokens, offsets) == (whole.text, whole.logprobs.tokens, whole.logprobs.text_offset)
    assert logprobs[0] is None
    assert logprobs[1:] == pytest.approx(whole.logprobs.token_logprobs[1:], abs=0.02)


@pytest.mark.parametrize("prompt", [[5], "日"])
def test_a_single_token_and_no_log_probabilities(server: Running, prompt: Any) -> None:
    done = ask(server, prompt, max_tokens=0, logprobs=1)
    assert done.choices[0].logprobs.token_logprobs[0] is None
    alone = ask(server, prompt, max_tokens=0)
    assert (alone.choices[0].text, alone.choices[0].logprobs) == (done.choices[0].text, None)
    assert len(ask(server, prompt, max_tokens=3, logprobs=1).choices[0].logprobs.tokens) > len(
        done.choices[0].logprobs.tokens
    )


def test_a_prompt_that_fills_the_context(server: Running) -> None:
    ids = long_prompt(2048)
    done = ask(server, ids, max_tokens=0, logprobs=1)
    assert len(done.choices[0].logprobs.token_logprobs) == len(ids)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, ids, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"


def test_no_tokens_are_for_echo_alone(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "x", max_tokens=0, echo=False)
    assert refused.value.code == "invalid_value"


def test_what_waits_is_never_an_empty_score(demo_f16: Path) -> None:
    with Engine(demo_f16, n_threads=1) as engine, serving(engine, timeout=0.01) as server:
        gate, held = hold(engine)
        with pytest.raises(openai.InternalServerError) as failed:
            ask(server, SHORT.prompt, max_tokens=0, logprobs=1)
        assert failed.value.status_code == 503
        gate.open()
        list(held)
