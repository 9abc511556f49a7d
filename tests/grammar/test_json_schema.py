"""Answers that follow a JSON schema: pydantic accepts them; schemas that cannot be followed are refused at once."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tests.support.engines import GREEDY, engine_of
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import SamplingError
from weblab_local.grammar.number_ranges import alternatives


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of(1) as engine:
        yield engine


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")
    名前: Annotated[str, Field(max_length=8)]
    children: Annotated[list["Node"], Field(max_length=2)] = []


class Colour(Enum):
    RED = "赤"
    QUOTED = 'a"\\b\n'


class Mixed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    when: date
    at: datetime
    id: UUID
    colour: Colour
    size: Annotated[int, Field(ge=-3, lt=120)]
    share: Annotated[float, Field(gt=0, le=1)]
    pair: tuple[Annotated[str, Field(min_length=2, max_length=3)], bool]
    maybe: int | None = None
    also: Annotated[str, Field(max_length=5)] | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


TYPES: list[Any] = [
    Node,
    Mixed,
    Annotated[Cat | Dog, Field(discriminator="kind")],
    dict[Annotated[str, Field()], Annotated[int, Field(ge=10, le=2047)]],
    Annotated[list[Annotated[str, Field(max_length=6)]], Field(min_length=1, max_length=3)],
    Literal["日本", 5, None, True],
    float,
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_pydantic_accepts_what_follows_its_schema(engine: Engine, kind: Any) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    wrapped = {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": schema.pop("$defs", {})}
    finished = 0
    for seed in range(12):
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=600, json_schema=wrapped)
        done = engine.generate("JSON", params)
        if done.finish_reason == "stop":
            finished += 1
            adapter.validate_python(json.loads(done.text)["a"], strict=False)
    assert finished >= 6


def test_a_string_never_holds_what_json_forbids_in_one(engine: Engine) -> None:
    newline = {token: 20.0 for token in range(3000) if b"\n" in engine.piece(token) or b"\t" in engine.piece(token)}
    params = replace(GREEDY, json_schema={"type": "string", "maxLength": 20}, logit_bias=newline)
    assert isinstance(json.loads(engine.generate("JSON", params).text), str)


bound = st.none() | st.integers(-130, 130)


@settings(deadline=None)
@given(bound, bound, bound, bound)
def test_ranges_of_whole_numbers(low: int | None, above: int | None, high: int | None, below: int | None) -> None:
    pattern = as_regex(alternatives(low, above, high, below, whole=True))
    for n in range(-1100, 1101):
        inside = all(
            (low is None or n >= low, above is None or n > above, high is None or n <= high, below is None or n < below)
        )
        assert bool(pattern.fullmatch(str(n))) == inside or (n == 0 and pattern.fullmatch("-0")), n


@settings(deadline=None)
@given(bound, bound, bound, bound, st.decimals(-140, 140, places=2))
def test_ranges_of_numbers_hold_none_beyond_them(
    low: int | None, above: int | None, high: int | None, below: int | None, n: Any
) -> None:
    pattern = as_regex(alternatives(low, above, high, below, whole=False))
    inside = all(
        (low is None or n >= low, above is None or n > above, high is None or n <= high, below is None or n < below)
    )
    text = f"{n.normalize():f}"  # behind an open bound no number ends with a needless 0
    assert bool(pattern.fullmatch(text)) == inside or n in (low, high, 0)
    assert inside or not pattern.fullmatch(text)


def as_regex(rules: list[str]) -> re.Pattern[str]:
    """GBNF of digits as a regular expression; one that matches nothing for no rules."""
    text = "|".join(f"({rule})" for rule in rules) or "(?!)"
    return re.compile(re.sub(r'[" ]', "", text.replace(".", r"\.").replace("fraction", r"(\.[0-9]{1,15})")))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "https": ({"$ref": "https://example.com/schema.json"}, "example.com"),
    "inside": ({"properties": {"a": {"$ref": "https://example.com/schema.json#/a"}}}, "example.com"),
    "file": ({"$ref": "file:///etc/passwd"}, "passwd"),
    "relative": ({"$ref": "other.json"}, "other.json"),
    "number": ({"$ref": 5}, "refers to 5"),
    "nowhere": ({"$ref": "#/$defs/nowhere"}, "nowhere"),
    "itself": ({"allOf": [{"$ref": "#"}]}, "64 deep"),
    "deep": (nested(200), "64 deep"),
    "very deep": (nested(5000), "recursion"),
    "wide": ({"enum": [f"value{n}" for n in range(100_000)]}, "1500"),
    "optional": ({"properties": {f"p{n}": {} for n in range(1000)}}, "absent"),
    "long": ({"type": "string", "minLength": 10**9}, "minLength"),
    "longer": ({"type": "array", "items": {}, "minItems": 10**9}, "minItems"),
    "backwards": ({"type": "array", "minItems": 5, "maxItems": 2}, "minItems"),
    "pattern": ({"type": "string", "pattern": "^(a*)*$"}, "pattern"),
    "not": ({"not": {"type": "string"}}, "not"),
    "unique": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "both": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "apart": ({"allOf": [{"type": "string"}, {"type": "number"}]}, "allOf"),
    "empty": ({"anyOf": []}, "anyOf"),
    "no number": ({"type": "integer", "minimum": 5, "maximum": 4}, "number"),
    "fraction": ({"type": "number", "minimum": 0.5}, "minimum"),
    "infinite": ({"const": float("inf")}, "JSON"),
    "list": ({"properties": ["a"]}, "properties"),
    "text": ({"type": "text"}, "text"),
    "surplus": ({"required": ["a"], "additionalProperties": False}, '"a"'),
    "endless": ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "comes to an end"),
    "around": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "to an end"),
    "values": ({"type": "string", "enum": [1, 2]}, "enum"),
}


@pytest.mark.parametrize(("schema", "said"), REFUSED.values(), ids=REFUSED)
def test_a_schema_that_cannot_be_followed_is_refused_when_it_is_given(
    schema: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(SamplingError, match=f"(?s)JSON schema.*{re.escape(said)}"):
        SamplingParams(json_schema=schema)


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "a property": ({"properties": {"a": {"pattern": "x"}}}, "#/properties/a"),
    "items": ({"properties": {"a": {"items": {"not": {}}}}}, "#/properties/a/items"),
    "a first item": ({"prefixItems": [{}, {"type": "text"}]}, "#/prefixItems/1"),
    "a branch": ({"anyOf": [{"type": "null"}, {"type": "string", "minLength": 10**9}]}, "#/anyOf/1"),
    "other properties": ({"additionalProperties": {"multipleOf": 2}}, "#/additionalProperties"),
    "what is referred to": ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"if": {}}}}}, "#/$defs/a/items"),
    "the largest": (
        {
            "properties": {"big": {"enum": [f"v{n}" for n in range(1450)]}}
            | {f"p{n}": {"type": "null", "title": str(n)} for n in range(60)}
        },
        "1451 of them in #/properties/big",
    ),
}


@pytest.mark.parametrize(("schema", "said"), PLACES.values(), ids=PLACES)
def test_the_refusal_says_which_part_it_is(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(SamplingError, match=re.escape(said)):
        SamplingParams(json_schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 1000, "maxLength": 10**9},
        {"type": "array", "items": {"type": "string"}, "minItems": 1400},
        {"enum": [f"value{n}" for n in range(1400)]},
        {"properties": {f"p{n}": {"type": "string"} for n in range(200)}},
        {"anyOf": [{"anyOf": [{"anyOf": [{"type": "string"}] * 10}] * 10}] * 10},
        nested(60),
    ],
)
def test_the_largest_that_is_taken_is_followed(engine: Engine, schema: dict[str, Any]) -> None:
    """These would crash or stop llama.cpp if the limits were further out."""
    params = SamplingParams(temperature=1, seed=1, max_tokens=20, json_schema=schema)
    if "minLength" in schema or "minItems" in schema:  # as a grammar, whose answers may be cut off
        params = replace(params, json_schema=None, grammar=params.gbnf())
    assert engine.generate("JSON", params).text


def test_a_reference_to_where_it_stands_is_an_error(engine: Engine) -> None:
    with pytest.raises(SamplingError, match="left recursion"):
        engine.generate("JSON", SamplingParams(json_schema={"anyOf": [{"$ref": "#"}, {"type": "null"}]}))
    assert engine.generate("JSON", SamplingParams(json_schema={"const": 5})).text == "5"


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= ((("a"?){100}){100}){100}',
        'root ::= "a"{5,2}',
        'root ::= "a"{99999999999999999999}',
        "root ::= r0\n" + "\n".join(f'r{n} ::= "a"? r{n + 1}' for n in range(100_000)) + '\nr100000 ::= "z"',
    ],
)
def test_a_grammar_that_would_stop_llama_cpp_is_refused(grammar: str) -> None:
    with pytest.raises(SamplingError, match=r"repeats|rules|characters"):
        SamplingParams(grammar=grammar)


def test_braces_in_strings_repeat_nothing(engine: Engine) -> None:
    grammar = 'root ::= "{9}" ([{5,2}] "a"{1,3}){2} [0-9]{1,15} ("{5,2}"){40} # {7,3}'
    assert engine.generate("?", replace(GREEDY, grammar=grammar)).text.startswith("{9}")
