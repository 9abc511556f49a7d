"""Structured answers end within their tokens, and are valid: whatever the model wants, however few there are."""

import json
import unicodedata
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llama_cpp import Llama

from tests.support.engines import engine_of, long_prompt
from tests.support.schemas import schemas
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampler import Sampler
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.token_budget import TokenBudget
from weblab_local.errors import SamplingError
from weblab_local.grammar.nodes import read_grammar
from weblab_local.llama.context import Context
from weblab_local.llama.segmentation import Segmentation
from weblab_local.llama.token_prefixes import TokenPrefixes
from weblab_local.llama.tokenizer import Tokenizer
from weblab_local.models.store import demo_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "age": {"type": "integer"},
        "friend": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocab() -> Iterator[Any]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield model._model.vocab
    model.close()


@pytest.fixture(scope="module")
def tokenizer(vocab: Any) -> Tokenizer:
    return Tokenizer(vocab)


@pytest.fixture(scope="module")
def segmentation(tokenizer: Tokenizer) -> Segmentation:
    return Segmentation(tokenizer.pieces)


@pytest.fixture(scope="module")
def prefixes(vocab: Any) -> TokenPrefixes:
    return TokenPrefixes(vocab)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of(1) as engine:
        yield engine


def written(tokens: list[int], tokenizer: Tokenizer) -> Any:
    return json.loads(b"".join(tokenizer.pieces[token] for token in tokens))


@settings(deadline=None, max_examples=200)
@given(schema=schemas(), more=st.integers(0, 30), seed=st.integers(0, 2**32 - 2), temperature=st.sampled_from([0, 1.0]))
def test_whatever_the_logits_the_answer_is_valid(
    vocab: Any,
    tokenizer: Tokenizer,
    segmentation: Segmentation,
    prefixes: TokenPrefixes,
    schema: dict[str, Any],
    more: int,
    seed: int,
    temperature: float,
) -> None:
    params = SamplingParams(temperature=temperature, seed=seed, json_schema=schema)
    budget = TokenBudget(read_grammar(str(params.gbnf())), segmentation, tokenizer.end)
    n_tokens = int(budget.n_least) + more
    assume(n_tokens < 200)
    draw = np.random.default_rng(seed)
    sampler = Sampler(params, vocab, (), 512, prefixes, budget)
    tokens: list[int] = []
    try:
        while len(tokens) < n_tokens:
            logits = (4 * draw.standard_normal(len(tokenizer.pieces))).astype(np.float32)
            context = cast(Context, SimpleNamespace(logits=[logits].__getitem__))
            token = sampler.sample(context, 0, n_tokens - len(tokens))
            if token == tokenizer.end:
                break
            tokens.append(token)
        assert budget.is_complete
    finally:
        sampler.close()
    jsonschema.validate(written(tokens, tokenizer), schema)


TEXTS = ["", "a", '{"name":"","tags":[],"age":0}', "日本の首都は東京です。", " " * 40, "\ufffd\u2028🙂"]


@settings(deadline=None)
@given(
    texts=st.lists(st.sampled_from(TEXTS) | st.text(max_size=12), max_size=3).map("".join), end=st.sampled_from(TEXTS)
)
def test_the_fewest_tokens_are_no_more_than_the_tokenizers(
    segmentation: Segmentation, tokenizer: Tokenizer, texts: str, end: str
) -> None:
    """Whatever was asked for before."""
    for raw in (texts + end, end, end + texts):
        text = unicodedata.normalize("NFC", raw)  # as the tokenizer does
        found = segmentation.fewest(text.encode())
        assert b"".join(tokenizer.pieces[token] for token in found) == text.encode()
        assert len(found) <= len(tokenizer.encode(text))


def test_a_vocabulary_that_does_not_have_all_bytes_is_none_for_it(segmentation: Segmentation) -> None:
    assert segmentation.has_all_bytes
    assert not Segmentation([b"a", b""]).has_all_bytes


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_with_every_budget_that_allows_the_shortest_answer(engine: Engine, temperature: float) -> None:
    shortest = '{"name":"","tags":[],"age":0}'
    least = len(engine.tokenize(shortest))
    for n in (least, least + 1, least + 2, least + 5, least + 9, 3 * least):
        for seed in range(4):
            params = SamplingParams(temperature=temperature, seed=seed, max_tokens=n, json_schema=PERSON)
            done = engine.generate("人を一人作ってください。", params)
            jsonschema.validate(json.loads(done.text), PERSON)
            assert done.finish_reason == "stop"
            assert len(done.token_ids) <= n


def test_a_budget_below_the_shortest_answer_is_refused(engine: Engine) -> None:
    with pytest.raises(
        SamplingError, match=r"The shortest answer that the JSON schema allows has \d+ tokens, and there"
    ):
        engine.generate("JSON", SamplingParams(max_tokens=3, json_schema=PERSON))


def test_the_end_of_the_context_is_a_budget_too() -> None:
    with engine_of(1, n_ctx=128) as engine:
        prompt = long_prompt(128 - 24)
        done = engine.generate(prompt, SamplingParams(temperature=0, max_tokens=500, json_schema=PERSON))
        jsonschema.validate(json.loads(done.text), PERSON)
        with pytest.raises(SamplingError, match="shorten the prompt"):
            engine.generate(long_prompt(128 - 4), SamplingParams(max_tokens=500, json_schema=PERSON))


def test_what_the_model_wants_to_write_is_written_as_long_as_there_is_room(engine: Engine) -> None:
    """Where nothing runs short the answer is the same as under the grammar alone, token by token."""
    for seed in range(4):
        params = SamplingParams(
            temperature=1.0, seed=seed, max_tokens=400, json_schema={"enum": ["はい", "いいえ", "両方"]}
        )
        alone = SamplingParams(temperature=1.0, seed=seed, max_tokens=400, grammar=params.gbnf())
        assert engine.generate("?", params).token_ids == engine.generate("?", alone).token_ids


def test_a_grammar_of_ones_own_may_be_cut_off(engine: Engine) -> None:
    done = engine.generate("?", SamplingParams(temperature=0, max_tokens=3, grammar='root ::= "a"{50}'))
    assert done.finish_reason == "length"


def test_several_at_once_in_a_small_context_write_what_they_do_alone(engine: Engine) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, json_schema=PERSON) for n in (40, 60, 90)]
    alone = [engine.generate("人を一人作ってください。", one).text for one in params]
    with engine_of(3, n_ctx=160) as small:
        streams = [small.stream("人を一人作ってください。", one) for one in params]
        assert ["".join(chunk.text for chunk in stream) for stream in streams] == alone
