"""A JSON schema as a GBNF grammar for llama.cpp: whatever follows the grammar is JSON that the schema accepts.

The other way round it is narrower: an object has its properties in the schema's order and no others, unless it has none
of its own; numbers have at most 15 digits. A keyword that a grammar cannot hold to is refused, not ignored. Only
references within the schema are followed: nothing here opens a file or a connection.

The grammar grows with the schema's size alone, and that is limited: llama.cpp reads it with recursive functions, and
compares every token with all places in it where the answer can be.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from weblab_local.grammar.literals import choice, literal
from weblab_local.grammar.nodes import read_grammar
from weblab_local.grammar.number_ranges import alternatives
from weblab_local.grammar.schema_keywords import (
    ANNOTATIONS,
    TYPES,
    UNSUPPORTED,
    SchemaError,
    apart,
    implied_type,
    length_bounds,
    list_of,
    listed_values,
    shortened,
    shown,
)
from weblab_local.i18n import _

MAX_DEPTH = 64
"""Schemas inside of each other, references included."""
MAX_PARTS = 1500
"""Schemas, properties and values of enums in all."""
MAX_BRANCHES = 100
"""Schemas in one anyOf or oneOf: each is compared with each, here or by llama.cpp at every token."""
MAX_OPTIONAL = 200
"""Properties that may be absent, in one object: after each, all others may follow."""

TERMINALS = r"""
space ::= " "?
string ::= "\"" character* "\""
character ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2}))
hex ::= [0-9a-fA-F]
whole ::= "0" | [1-9] [0-9]{0,14}
fraction ::= "." [0-9]{1,15}
integer ::= "-"? whole
number ::= "-"? whole fraction? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
object ::= "{" space (string ":" space value space ("," space string ":" space value space)*)? "}"
array ::= "[" space (value space ("," space value space)*)? "]"
value ::= object | array | string | number | boolean | null
year ::= [1-9] [0-9]{3}
month-and-day ::= ("0" [13578] | "1" [02]) "-" day31 | ("0" [469] | "11") "-" day30 | "02-" day28
day28 ::= "0" [1-9] | "1" [0-9] | "2" [0-8]
day30 ::= "0" [1-9] | [12] [0-9] | "30"
day31 ::= "0" [1-9] | [12] [0-9] | "3" [01]
date ::= year "-" month-and-day
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? zone
zone ::= "Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]
uuid ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
"""
"""Rules of JSON (RFC 8259) and RFC 3339's dates, the years' 29th of February left out."""

FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}
"""What other formats ask of a string is not part of validation, as the standard has it."""


@lru_cache(maxsize=64)
def grammar(schema: str) -> str:
    """The GBNF grammar of a JSON schema, given as JSON; "{}" is any object. Raises SchemaError."""
    root = json.loads(schema)
    if root == {}:
        root = {"type": "object"}
    rules = _Rules(root)
    first = rules.add(root, 0, "#")
    lines = [f"root ::= {first}", *(f"{name} ::= {rule}" for name, rule in rules.rules.items())]
    gbnf = "\n".join(lines) + TERMINALS
    if math.isinf(read_grammar(gbnf).cost):
        raise SchemaError(_("nothing that comes to an end fits it: it requires itself within itself"))
    return gbnf


class _Rules:
    """Rules of the schemas that were visited, one for each, so that a reference to one that is open is its name."""

    def __init__(self, root: Any) -> None:
        self.rules: dict[str, str] = {}
        self._root = root
        self._of_reference: dict[str, str] = {}
        self._sizes: Counter[str] = Counter()
        """By place, how many schemas, properties and values it has itself."""

    def add(self, schema: Any, depth: int, where: str) -> str:
        """The name of the rule for `schema`, which is `where` in the whole. Raises SchemaError that says where."""
        try:
            return self._added(schema, depth, where)
        except SchemaError as error:
            error.where = error.where or where
            raise

    def _added(self, schema: Any, depth: int, where: str) -> str:
        self._count(1, where)
        if depth > MAX_DEPTH:
            raise SchemaError(_("it is nested more than {most} deep").format(most=MAX_DEPTH))
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise SchemaError(_("{value} is no schema").format(value=shown(schema)))
        beside = schema.keys() - {"$ref", *ANNOTATIONS}
        if "$ref" in schema and not beside:
            return self._referred(schema["$ref"], depth)
        name = f"r{len(self.rules)}"
        self.rules[name] = ""
        self.rules[name] = self._rule(schema, name, depth + 1, where)
        return name

    def _count(self, n: int, where: str) -> None:
        self._sizes[where] += n
        if self._sizes.total() > MAX_PARTS:
            ((largest, size),) = self._sizes.most_common(1)
            raise SchemaError(
                _("it has more than {most} schemas, properties and values, {n} of them in {where}").format(
                    most=MAX_PARTS, n=size, where=shortened(largest)
                )
            )

    def _referred(self, reference: Any, depth: int) -> str:
        target = self._target(reference)
        known = self._of_reference.get(reference)
        if known is None:
            known = self._of_reference[reference] = f"r{len(self.rules)}"
            self.rules[known] = ""
            self.rules[known] = self.add(target, depth + 1, reference)
        return known

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not re.match("#(/|$)", reference):
            raise SchemaError(
                _("it refers to {reference}, and only references within it (#/...) are followed").format(
                    reference=shown(reference)
                )
            )
        target = self._root
        for part in unquote(reference).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise SchemaError(_("there is no {reference} in it").format(reference=reference))
        return target

    def _rule(self, schema: Mapping[str, Any], name: str, depth: int, where: str) -> str:
        for key in sorted(UNSUPPORTED & schema.keys()):
            raise SchemaError(_("{keyword} cannot be kept by a grammar").format(keyword=key))
        if schema.get("uniqueItems") is True:
            raise SchemaError(_("{keyword} cannot be kept by a grammar").format(keyword="uniqueItems"))
        if "$ref" in schema:
            alone = {"$ref": schema["$ref"]}
            return self.add(
                {"allOf": [alone, {key: one for key, one in schema.items() if key != "$ref"}]}, depth, where
            )
        for key in ("anyOf", "oneOf"):
            if key in schema:
                if len(list_of(schema, key)) > MAX_BRANCHES:
                    raise SchemaError(
                        _("{keyword} has more than {most} schemas").format(keyword=key, most=MAX_BRANCHES)
                    )
                parts = [_together(schema, key, one) for one in list_of(schema, key)]
                if key == "oneOf":
                    self._require_apart(parts)
                return " | ".join(self.add(one, depth, f"{where}/{key}/{i}") for i, one in enumerate(parts))
        if "allOf" in schema:
            return self.add(self._all_of(schema, where), depth, where)
        if "const" in schema or "enum" in schema:
            values = listed_values(schema)
            self._count(len(values), where)
            return choice([_text(value) for value in values])
        kinds = schema.get("type", implied_type(schema))
        if kinds is None:
            return "value"
        if isinstance(kinds, str):
            kinds = [kinds]
        if not isinstance(kinds, list) or not kinds or not set(map(str, kinds)) <= set(TYPES):
            raise SchemaError(_("{value} is no type").format(value=shown(kinds)))
        return " | ".join(self._typed(schema, kind, name, depth, where) for kind in kinds)

    def _typed(self, schema: Mapping[str, Any], kind: str, name: str, depth: int, where: str) -> str:
        if kind == "object":
            return self._object(schema, name, depth, where)
        if kind == "array":
            return self._array(schema, name, depth, where)
        if kind == "string":
            return _string(schema)
        if kind in ("number", "integer"):
            return _number(schema, kind)
        return kind

    def _all_of(self, schema: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The schemas of allOf as one: their properties together; else each may only say what no other says."""
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        self._count(len(list_of(schema, "allOf")), where)
        parts = [self._resolved(part) for part in list_of(schema, "allOf")]
        closed = [part for part in (merged, *parts) if part.get("additionalProperties", True) is not True]
        if closed and sum("properties" in part for part in (merged, *parts)) > 1:
            raise SchemaError(_("{keyword} has schemas that do not go together").format(keyword="allOf"))
        for part in parts:
            for key, value in part.items():
                if key == "properties" and isinstance(value, dict):
                    both = [name for name in value if merged.get(key, {}).get(name, value[name]) != value[name]]
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required" and isinstance(value, list):
                    both = []
                    merged[key] = [*merged.get(key, []), *value]
                else:
                    both = [key] if key not in ANNOTATIONS and merged.setdefault(key, value) != value else []
                if both:
                    raise SchemaError(_("{keyword} has schemas that do not go together").format(keyword="allOf"))
        return merged

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """The schema itself, not a reference to it."""
        for _step in range(MAX_DEPTH):
            if not isinstance(schema, dict):
                break
            if "$ref" not in schema:
                return schema
            beside = {key: value for key, value in schema.items() if key not in ("$ref", *ANNOTATIONS)}
            target = self._target(schema["$ref"])
            schema = {"allOf": [target, beside]} if beside else target
        raise SchemaError(_("{value} is no schema").format(value=shown(schema)))

    def _require_apart(self, parts: Sequence[Any]) -> None:
        """Raise SchemaError where a value may fit two schemas of oneOf, which then rejects it."""
        schemas = [self._resolved(part) for part in parts]
        for i, one in enumerate(schemas):
            for other in schemas[:i]:
                if not apart(one, other):
                    raise SchemaError(_("a value may fit several schemas of oneOf; anyOf allows that"))

    def _object(self, schema: Mapping[str, Any], name: str, depth: int, where: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise SchemaError(_("{value} are no properties").format(value=shown(properties)))
        additional = schema.get("additionalProperties", True)
        properties = {key: one for key, one in properties.items() if one is not False}
        for key in required:
            if key not in properties:
                if additional is False:
                    raise SchemaError(_("it requires {name}, which it does not have").format(name=shown(key)))
                properties[key] = additional
        if not properties:
            return '"{" space "}"' if additional is False else self._map(additional, depth, where)
        rules = [self.add(one, depth, f"{where}/properties/{key}") for key, one in properties.items()]
        pairs = [f'{literal(_text(key))} ":" space {rule} space' for key, rule in zip(properties, rules, strict=True)]
        optional = [key not in required for key in properties]
        if sum(optional) > MAX_OPTIONAL:
            raise SchemaError(_("more than {most} properties of an object may be absent").format(most=MAX_OPTIONAL))
        return '"{" space ' + self._in_order(name, pairs, optional) + ' "}"'

    def _map(self, values: Any, depth: int, where: str) -> str:
        if values is True:
            return "object"
        pair = f'string ":" space {self.add(values, depth, f"{where}/additionalProperties")} space'
        return f'"{{" space ({pair} ("," space {pair})*)? "}}"'

    def _in_order(self, name: str, pairs: Sequence[str], optional: Sequence[bool]) -> str:
        """The pairs between commas, the optional ones or not: `-first` before one is written, `-next` after.

        A rule for each, so that the grammar grows with their number and not with its square.
        """
        if all(optional):
            self.rules[f"{name}-first{len(pairs)}"] = '""'
        self.rules[f"{name}-next{len(pairs)}"] = '""'
        for i in range(len(pairs)):
            following = f'"," space {pairs[i]}'
            if optional[i]:
                following = f"({following})?"
            self.rules[f"{name}-next{i}"] = f"{following} {name}-next{i + 1}"
        for i, (pair, may_be_absent) in enumerate(zip(pairs, optional, strict=True)):
            rule = f"{pair} {name}-next{i + 1}"
            self.rules[f"{name}-first{i}"] = f"{rule} | {name}-first{i + 1}" if may_be_absent else rule
            if not may_be_absent:
                break
        return f"{name}-first0"

    def _array(self, schema: Mapping[str, Any], name: str, depth: int, where: str) -> str:
        least, most = length_bounds(schema, "minItems", "maxItems")
        first = schema.get("prefixItems", [])
        items = schema.get("items", True)
        if isinstance(items, list):  # as before draft 2020-12
            first, items = items, True
        if not isinstance(first, list):
            raise SchemaError(_("{value} is no list").format(value=shown(first)))
        if items is False:
            most = min(len(first), len(first) if most is None else most)
        if len(first) > MAX_DEPTH:
            raise SchemaError(_("it is nested more than {most} deep").format(most=MAX_DEPTH))
        rules = [self.add(one, depth, f"{where}/prefixItems/{i}") for i, one in enumerate(first[:most])]
        if len(rules) == most:
            return '"[" space ' + _list_rule(rules, "", least) + ' "]"'
        item, further = f"{self.add(items, depth, f'{where}/items')} space", f"{name}-further"
        self.rules[further] = f'"," space {item}'
        low, high = max(least - len(rules), 0), None if most is None else most - len(rules)
        if rules:
            return '"[" space ' + _list_rule(rules, _repeated(further, low, high), least) + ' "]"'
        more = _repeated(further, max(low - 1, 0), None if high is None else high - 1)
        return '"[" space ' + (f"{item} {more}" if low else f"({item} {more})?") + ' "]"'


def _list_rule(first: Sequence[str], rest: str, least: int) -> str:
    """The first items between commas, of which those beyond `least` may be absent, then the rest."""
    for i in reversed(range(len(first))):
        comma = '"," space ' if i else ""
        rest = f"{comma}{first[i]} space {rest}"
        if i >= least:
            rest = f"({rest})?"
    return rest


def _string(schema: Mapping[str, Any]) -> str:
    least, most = length_bounds(schema, "minLength", "maxLength")
    rule = FORMATS.get(str(schema.get("format")))
    if rule is not None:
        if least or most is not None:
            raise SchemaError(_("{keyword} cannot be kept by a grammar").format(keyword="format + minLength"))
        return rf'"\"" {rule} "\""'
    return "string" if not least and most is None else rf'"\"" {_repeated("character", least, most)} "\""'


def _number(schema: Mapping[str, Any], kind: str) -> str:
    bounds = {}
    for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        value = schema.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SchemaError(_("{value} is no number").format(value=shown(value)))
        if value is not None and value != int(value) and kind == "number":
            raise SchemaError(_("{keyword} of a number has to be whole").format(keyword=key))
        bounds[key] = value
    if set(bounds.values()) == {None}:
        return kind
    rules = alternatives(*bounds.values(), whole=kind == "integer")
    if not rules:
        raise SchemaError(_("no number lies within its bounds"))
    return " | ".join(rules)


def _repeated(rule: str, least: int, most: int | None) -> str:
    return f"{rule}{{{least},{'' if most is None else most}}}" if most != 0 else ""


def _together(schema: Mapping[str, Any], key: str, alternative: Any) -> Any:
    """An alternative with what the schema says beside it."""
    beside = {k: v for k, v in schema.items() if k != key and k not in ANNOTATIONS}
    return {"allOf": [alternative, beside]} if beside else alternative


def _text(value: Any) -> str:
    """The value's JSON, which UTF-8 can hold."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if any("\ud800" <= character <= "\udfff" for character in text) else text
