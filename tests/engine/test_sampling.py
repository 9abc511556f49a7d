"""Sampling: parameters that make no sense are refused, llama.cpp's chain does what transformers' processors do."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llama_cpp import Llama
from pydantic import BaseModel, ConfigDict
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from convert.demo.corpus import read_corpus
from tests.support import reference
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampler import Sampler
from weblab_local.engine.sampling import MAX_SEED, SamplingParams
from weblab_local.errors import SamplingError, WeblabError
from weblab_local.models.store import demo_model

PAIRS = read_corpus()
QUESTION = "大規模言語モデルについて説明してください。"
GREEDY = SamplingParams(temperature=0, max_tokens=64)
FREE = SamplingParams(temperature=1, top_k=0, top_p=1)


@pytest.fixture(scope="module")
def engine(demo_f16: Path) -> Iterator[Engine]:
    with Engine(demo_f16, n_parallel=2, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def vocab() -> Iterator[object]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield model._model.vocab
    model.close()


NO_NUMBERS: list[object] = [math.nan, math.inf, "1", True, [1]]
NO_COUNTS: list[object] = [-1, 1.5, *NO_NUMBERS]
WRONG: Mapping[str, Sequence[object]] = {
    "temperature": [-0.1, 100.5, *NO_NUMBERS],
    "top_k": [2**31, *NO_COUNTS],
    "top_p": [-0.01, 1.01, *NO_NUMBERS],
    "min_p": [-0.01, 1.01, *NO_NUMBERS],
    "repeat_penalty": [0, 101, *NO_NUMBERS],
    "presence_penalty": [-101, 101, *NO_NUMBERS],
    "frequency_penalty": [-101, 101, *NO_NUMBERS],
    "seed": [MAX_SEED + 1, *NO_COUNTS],
    "max_tokens": [0, None, *NO_COUNTS],
    "stop": ["", ["a", ""], [1], 5, None],
    "logit_bias": [[1], None, {-1: 1.0}, {"1": 1.0}, {1.0: 1.0}, {True: 1.0}, {1: 1e39}, *({1: x} for x in NO_NUMBERS)],
    "grammar": ["", " \n", 5, 'root ::= "\0"', 'root ::= "\ud83d"'],
    "json_schema": ["{}", [], 5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_a_sampling_error_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(SamplingError, ValueError)
    assert issubclass(SamplingError, WeblabError)


def test_a_grammar_and_a_schema_together_are_refused() -> None:
    with pytest.raises(SamplingError, match=r"grammar.*json_schema"):
        SamplingParams(grammar='root ::= "a"', json_schema={})


def test_the_defaults_are_the_model_cards_and_transformers() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k) == (0.7, 0.95, 50)
    assert (params.repeat_penalty, params.min_p, params.seed) == (1.0, 0.0, None)


def test_parameters_are_values() -> None:
    bias = {5: -math.inf}
    params = SamplingParams(stop="終", logit_bias=bias)
    bias[6] = 1.0
    assert params == SamplingParams(stop=["終"], logit_bias={5: -math.inf})
    assert params != replace(params, top_k=1)
    assert "stop=('終',)" in repr(params)
    assert "temperature=0.7" in repr(params)
    assert dict(params.logit_bias) == {5: -math.inf}
    with pytest.raises(FrozenInstanceError):
        params.top_k = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        params.logit_bias[6] = 1.0  # type: ignore[index]


def processors(params: SamplingParams, slack: float) -> LogitsProcessorList:
    """transformers' own, in the order of its `generate`; `slack` moves the edges of top-p and min-p outwards."""
    chain = LogitsProcessorList()
    if params.repeat_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repeat_penalty))
    chain.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(min(max(params.top_p + slack, 0.0), 1.0)))
    if params.min_p:
        chain.append(MinPLogitsWarper(min(params.min_p * (1 - slack), 1.0)))
    return chain


def probabilities(
    params: SamplingParams, prompt: Sequence[int], logits: Sequence[float], slack: float
) -> dict[int, float]:
    """The tokens that transformers would draw from, in float64."""
    scores = torch.tensor([list(logits)], dtype=torch.float64)
    scores = processors(params, slack)(torch.tensor([list(prompt)]), scores)  # type: ignore[arg-type]
    drawn_from = scores[0].softmax(dim=-1)
    return {token: float(drawn_from[token]) for token in torch.isfinite(scores[0]).nonzero().flatten().tolist()}


@settings(max_examples=150, deadline=None)
@given(
    params=st.builds(
        SamplingParams,
        temperature=st.floats(0.05, 5),
        top_k=st.one_of(st.just(0), st.integers(1, 100), st.sampled_from([2999, 3000, 5000])),
        top_p=st.one_of(st.just(1.0), st.floats(0, 1)),
        min_p=st.one_of(st.just(0.0), st.floats(0, 1, width=32, allow_subnormal=False)),
        repeat_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2)),
    ),
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.1, 10),
    prompt=st.lists(st.integers(0, 2999), min_size=1, max_size=50),
)
def test_the_tokens_left_and_their_probabilities_are_transformers(
    vocab: object, params: SamplingParams, seed: int, spread: float, prompt: list[int]
) -> None:
    """llama.cpp adds float32 probabilities up, at most 3,000 of them: a sum is off by 3,000 * 2**-24 = 2e-4 at most.

    So a token whose cumulative probability is that close to top_p, or whose probability is that close to min_p, may be
    on the other side; every other token is kept by both or by neither. Among equal logits at the edge of top-k
    transformers keeps all and llama.cpp the first: logits that are equal in float32 are left out.
    """
    slack = 2e-4
    logits = (np.random.default_rng(seed).standard_normal(3000) * spread).astype(np.float32)
    scaled = RepetitionPenaltyLogitsProcessor(params.repeat_penalty)(
        torch.tensor([prompt]),
        torch.tensor(logits[None]),
    ) / float(params.temperature)
    assume(len(scaled.unique()) == 3000)
    sampler = Sampler(params, vocab, prompt, n_ctx=2048)
    try:
        left = sampler.apply(logits.tolist())
    finally:
        sampler.close()

    surely = probabilities(params, prompt, logits.tolist(), -slack)
    perhaps = probabilities(params, prompt, logits.tolist(), slack)
    assert surely.keys() <= left.keys() <= perhaps.keys()
    of_those_left = sum(perhaps[token] for token in left)
    expected = [perhaps[token] / of_those_left for token in left]
    np.testing.assert_allclose(list(left.values()), expected, rtol=1e-4, atol=1e-12)


def test_on_the_demos_logits_exactly_transformers_tokens_are_left(vocab: object) -> None:
    for pair in PAIRS[::30]:
        prompt = reference.encode(pair.prompt)
        logits = reference.logits(prompt)[-1].tolist()
        for params in (
            SamplingParams(temperature=1.5),
            SamplingParams(temperature=2, top_k=0, top_p=0.9, repeat_penalty=1.2),
            SamplingParams(temperature=3, top_k=0, top_p=1, min_p=0.02),
        ):
            sampler = Sampler(params, vocab, prompt, n_ctx=2048)
            left = sampler.apply(logits)
            sampler.close()
            expected = probabilities(params, prompt, logits, 0.0)
            assert left.keys() == expected.keys()
            np.testing.assert_allclose([left[token] for token in expected], list(expected.values()), rtol=1e-4)


def test_draws_follow_the_probabilities(engine: Engine) -> None:
    """600 seeds, one token each; every frequency is within four standard deviations of transformers' probability."""
    prompt = reference.encode(next(pair for pair in PAIRS if pair.instruction == "Say hello.").prompt)
    params = replace(FREE, temperature=4.0, top_k=5, max_tokens=1, logit_bias={reference.END: -math.inf})
    scores = reference.logits(prompt)[-1].astype(np.float64) / 4.0
    scores[reference.END] = -np.inf
    likeliest = np.argsort(-scores)[:5]
    weights = np.exp(scores[likeliest] - scores.max())
    n_draws = 600
    drawn = [engine.generate(prompt, replace(params, seed=seed)).token_ids[0] for seed in range(n_draws)]
    assert set(drawn) <= set(likeliest.tolist())
    for token, probability in zip(likeliest, weights / weights.sum(), strict=True):
        deviation = math.sqrt(probability * (1 - probability) / n_draws)
        assert drawn.count(int(token)) / n_draws == pytest.approx(probability, abs=4 * deviation)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    params = replace(FREE, temperature=1.5, max_tokens=60)
    texts = []
    for _ in range(2):
        with Engine(demo_model(), n_threads=1) as engine:
            texts.append([engine.generate(QUESTION, replace(params, seed=seed)).text for seed in range(8)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 4


def test_without_a_seed_each_answer_is_another(engine: Engine) -> None:
    params = replace(FREE, temperature=5.0, max_tokens=20)
    assert len({engine.generate(QUESTION, params).text for _ in range(4)}) == 4


@pytest.mark.parametrize("temperature", [1e-6, 1e-7, 1e-40, 1e-300, 5e-324])
def test_hardly_any_temperature_is_greedy_decoding(engine: Engine, temperature: float) -> None:
    assert engine.generate(QUESTION, replace(GREEDY, temperature=temperature)).token_ids == (
        engine.generate(QUESTION, GREEDY).token_ids
    )


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_sampling_from_one_token_is_greedy_decoding(engine: Engine, options: dict[str, Any]) -> None:
    assert engine.generate(QUESTION, replace(FREE, max_tokens=64, **options)).token_ids == (
        engine.generate(QUESTION, GREEDY).token_ids
    )


def test_the_repeat_penalty_changes_greedy_answers_as_transformers_does(engine: Engine) -> None:
    for pair in PAIRS[5:60:11]:
        prompt = reference.encode(pair.prompt)
        (expected,) = reference.greedy([prompt], 48, repetition_penalty=1.3)
        ours = engine.generate(prompt, replace(GREEDY, repeat_penalty=1.3, max_tokens=48), raw=True)
        assert [*ours.token_ids, *([reference.END] if ours.finish_reason == "stop" else [])] == expected


@pytest.mark.parametrize(("presence", "frequency"), [(3.0, 0.0), (0.0, 1.5), (2.0, 1.0), (-1.0, -0.5)])
def test_presence_and_frequency_penalties_follow_openais_formula(
    engine: Engine, presence: float, frequency: float
) -> None:
    """logit - presence * (count > 0) - frequency * count, where the answer counts and the prompt does not.

    A logit of llama.cpp's may be 1e-2 away from transformers', so a token that is 2e-2 below the best may be its best.
    """
    params = replace(GREEDY, presence_penalty=presence, frequency_penalty=frequency, max_tokens=40)
    for pair in PAIRS[::60]:
        prompt = reference.encode(pair.prompt)
        done = engine.generate(prompt, params, raw=True)
        chosen = [*done.token_ids, *([reference.END] if done.finish_reason == "stop" else [])]
        logits = reference.logits([*prompt, *chosen[:-1]])[len(prompt) - 1 :]
        counts = np.zeros(logits.shape[1])
        for scores, token in zip(logits, chosen, strict=True):
            penalized = scores - presence * (counts > 0) - frequency * counts
            assert penalized[token] >= penalized.max() - 2e-2
            counts[token] += 1


def test_a_forbidden_token_never_comes(engine: Engine) -> None:
    usual = engine.generate(QUESTION, GREEDY).token_ids
    forbidden = dict.fromkeys(usual[:5], -math.inf)
    other = engine.generate(QUESTION, replace(GREEDY, logit_bias=forbidden)).token_ids
    assert not set(other) & set(forbidden)
    sampled = engine.generate(QUESTION, replace(FREE, temperature=2, seed=1, logit_bias=forbidden)).token_ids
    assert not set(sampled) & set(forbidden)


@pytest.mark.parametrize("params", [GREEDY, replace(FREE, seed=1)])
def test_a_bias_of_100_forces_a_token(engine: Engine, params: SamplingParams) -> None:
    (token,) = reference.encode("桜")[:1]
    done = engine.generate(QUESTION, replace(params, logit_bias={token: 100}, max_tokens=7))
    assert done.token_ids == (token,) * 7


def test_a_bias_for_a_token_that_is_not_there_is_an_error(engine: Engine) -> None:
    with pytest.raises(SamplingError, match="token 3000"):
        engine.generate(QUESTION, SamplingParams(logit_bias={3000: 1.0}))
    assert engine.generate(QUESTION, GREEDY).text


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["花子", "太郎"]
    age: int
    hobbies: list[Literal["将棋", "散歩"]]


PEOPLE: Mapping[str, Any] = Person.model_json_schema()


@pytest.mark.parametrize("params", [GREEDY, *(replace(FREE, temperature=1.5, seed=seed) for seed in range(5))])
def test_an_answer_fits_its_json_schema(engine: Engine, params: SamplingParams) -> None:
    done = engine.generate("人を一人。", replace(params, json_schema=PEOPLE, max_tokens=400))
    assert done.finish_reason == "stop"
    Person.model_validate_json(done.text)


def test_an_empty_schema_is_any_json_object(engine: Engine) -> None:
    ends = {token: 50.0 for token in range(3000) if "}" in reference.decode([token])}
    done = engine.generate("JSON", replace(GREEDY, json_schema={}, logit_bias=ends))
    assert done.finish_reason == "stop"
    assert isinstance(json.loads(done.text), dict)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_an_answer_follows_its_grammar(engine: Engine, temperature: float) -> None:
    grammar = 'root ::= ("春" | "夏" | "秋" | "冬") "は" [0-9]{2} "度" "🌸"?'
    done = engine.generate("?", SamplingParams(temperature=temperature, grammar=grammar, seed=3))
    assert done.finish_reason == "stop"
    assert done.text[0] in "春夏秋冬"
    assert done.text[1] == "は"
    assert done.text[2:4].isdigit()
    assert done.text[4:] in ("度", "度🌸")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"grammar": "root ::= nowhere"}, "grammar"),
        ({"grammar": 'other ::= "a"'}, "root"),
        ({"grammar": 'root ::= root "a" | "b"'}, "left recursion"),
        ({"json_schema": {"type": "nonsense"}}, "schema"),
        ({"json_schema": {"$ref": "#/$defs/nowhere"}}, "schema"),
        ({"json_schema": {"const": object()}}, "schema"),
    ],
)
def test_a_broken_grammar_is_an_error_of_its_request_alone(engine: Engine, options: dict[str, Any], said: str) -> None:
    with engine.stream(QUESTION, GREEDY) as beside:
        with pytest.raises(SamplingError, match=said):
            engine.generate(QUESTION, SamplingParams(**options))
        text = "".join(chunk.text for chunk in beside)
    assert text == engine.generate(QUESTION, GREEDY).text


def test_a_grammar_that_would_overflow_the_stack_is_refused() -> None:
    with pytest.raises(SamplingError, match="100000"):
        SamplingParams(grammar="root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000)


def test_parentheses_in_strings_classes_and_comments_nest_nothing(engine: Engine) -> None:
    grammar = 'root ::= "\\"' + "(" * 300 + '" | [(((\\](]' + "# " + "(" * 300
    assert engine.generate("?", replace(GREEDY, grammar=grammar)).finish_reason in ("stop", "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_in_which_no_token_is_left_ends_with_an_error(engine: Engine, temperature: float) -> None:
    """llama.cpp chooses a forbidden token then, and its grammar ends the process over it."""
    params = SamplingParams(temperature=temperature)
    letter = reference.encode("a")[0]
    with pytest.raises(SamplingError, match="forbid"):
        engine.generate(QUESTION, replace(params, grammar='root ::= "a"', logit_bias={letter: -math.inf}))
    with pytest.raises(SamplingError, match="forbid"):
        engine.generate(QUESTION, replace(params, logit_bias=dict.fromkeys(range(3000), -math.inf)))
    assert engine.generate(QUESTION, GREEDY).text


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" #\rb ::= ' + "(" * 5000 + '"a"' + ")" * 5000,
        'root ::= "\\"" ' + "(" * 5000 + '"a"' + ")" * 5000,
        'root ::= [\\]"] ' + "(" * 5000 + '"a"' + ")" * 5000,
    ],
    ids=["a comment ends at a carriage return", "an escaped quote", "an escaped bracket"],
)
def test_nothing_hides_parentheses_from_the_check(grammar: str) -> None:
    """llama.cpp's parser would overflow the stack."""
    with pytest.raises(SamplingError, match="nests 5000 parentheses"):
        SamplingParams(grammar=grammar)


@pytest.mark.parametrize("part", ["[", '"', '"[\\', "#", "[\\]"])
def test_a_grammar_that_never_closes_what_it_opens_is_read_in_one_pass(part: str) -> None:
    SamplingParams(grammar=(part * 100_000)[:100_000])
    with pytest.raises(SamplingError, match="characters"):
        SamplingParams(grammar=part * 100_001)
