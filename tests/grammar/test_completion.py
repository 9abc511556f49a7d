"""The shortest ends of answers: none is shorter, llama.cpp's grammar accepts them, and so does jsonschema."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from llama_cpp import Llama

from tests.support.schemas import schemas
from weblab_local.engine.sampling import SamplingParams
from weblab_local.grammar.completion import Completion, Position
from weblab_local.grammar.nodes import read_grammar
from weblab_local.llama.sampler_chain import SamplerChain
from weblab_local.llama.tokenizer import Tokenizer
from weblab_local.models.store import demo_model


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield Tokenizer(model._model.vocab)
    model.close()


def gbnf(schema: dict[str, Any]) -> str:
    return str(SamplingParams(json_schema=schema).gbnf())


def completion_of(schema: dict[str, Any]) -> Completion:
    return Completion(read_grammar(gbnf(schema)))


def at(completion: Completion, text: bytes) -> Position:
    position = completion.after(completion.start, text)
    assert position is not None, text
    return position


SHORTEST: list[tuple[dict[str, Any], str]] = [
    ({"type": "string"}, '""'),
    ({"type": "string", "minLength": 3}, '"   "'),
    ({"type": "integer"}, "0"),
    ({"type": "integer", "minimum": 20, "maximum": 1000}, "20"),
    ({"type": "number", "maximum": -2}, "-2"),
    ({"type": "boolean"}, "true"),
    ({"type": "array"}, "[]"),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "[0,0]"),
    ({"type": "array", "prefixItems": [{"type": "null"}, {}], "minItems": 1}, "[null]"),
    ({"enum": ["はい", "いいえ", "not"]}, '"not"'),
    ({"anyOf": [{"type": "string", "minLength": 4}, {"type": "null"}]}, "null"),
    ({"properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}, "required": ["b"]}, '{"b":true}'),
    ({"properties": {"a": {"$ref": "#"}}}, "{}"),
    ({"type": "string", "format": "date"}, '"1000-02-01"'),
    ({}, "{}"),
]


@pytest.mark.parametrize(("schema", "shortest"), SHORTEST, ids=lambda one: one if isinstance(one, str) else "")
def test_the_shortest_answer(schema: dict[str, Any], shortest: str) -> None:
    completion = completion_of(schema)
    found = completion.shortest(completion.start)
    assert len(found) == len(shortest.encode()) == completion.cost(completion.start)
    jsonschema.validate(json.loads(found), schema)
    assert at(completion, shortest.encode()).is_end


NESTED = {"properties": {"a": {"items": {"type": "string"}}, "名": {"const": "日本"}}, "required": ["a", "名"]}


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        (b'{"a":', '[],"名":"日本"}'.encode()),
        (b'{"a":["x', '"],"名":"日本"}'.encode()),
        (b'{"a":["\\', b'"'),
        (b'{"a":["\\u00', b"00"),
        ('{"a":["日'.encode(), '"],"名":"日本"}'.encode()),
        ('{"a": ["", "日'.encode()[:-1], "日".encode()[-1:]),
        ('{"a":[],"名'.encode()[:-2], '名":"日本"}'.encode()[1:]),
        ('{"a":[], "名":"日本"'.encode(), b"}"),
    ],
)
def test_the_shortest_end_from_the_middle_of_an_answer(begun: bytes, rest: bytes) -> None:
    completion = completion_of(NESTED)
    position = at(completion, begun)
    shortest = completion.shortest(position)
    assert len(shortest) == completion.cost(position)
    if rest.endswith(b"}"):
        assert shortest == rest
    whole = json.loads(begun + shortest)
    jsonschema.validate(whole, NESTED)


@pytest.mark.parametrize("wrong", [b"[", b'{"b"', b'{"a":["\n', b'{"a":["\xff', b'{"a":["\xe6\x41', b'{"a":["\xed\xa0'])
def test_what_the_grammar_does_not_allow_leads_nowhere(wrong: bytes) -> None:
    completion = completion_of(NESTED)
    assert completion.after(completion.start, wrong) is None


def test_an_answer_that_may_go_on_may_end() -> None:
    completion = completion_of({"type": "number"})
    ends = [text for text in ("1", "-", "12", "12.", "12.5", "1e", "1e5") if at(completion, text.encode()).is_end]
    assert ends == ["1", "12", "12.5", "1e5"]


@settings(deadline=None, max_examples=150)
@given(schema=schemas())
def test_every_schemas_shortest_answer_is_valid_and_llama_cpp_accepts_it(
    tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    completion = completion_of(schema)
    text = completion.shortest(completion.start)
    jsonschema.validate(json.loads(text), schema)
    chain = SamplerChain(tokenizer._vocab)
    try:
        chain.add_grammar(gbnf(schema))
        for token in (*tokenizer.encode(text.decode()), tokenizer.end):
            (logit,) = chain.adjusted(np.zeros(1, np.float32), np.array([token]))
            assert logit == 0, (text, token)
            chain.accept(token)
    finally:
        chain.close()
