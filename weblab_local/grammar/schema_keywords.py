"""What the keywords of a JSON schema say: types, bounds, constants, and whether two schemas can be told apart."""

import json
from collections.abc import Mapping
from typing import Any

from weblab_local.i18n import _

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
MAX_REPETITIONS = 1500
"""llama.cpp takes some more as "any number". A longer maximum becomes this one, which fits it too."""
UNSUPPORTED = frozenset(
    {
        *("$anchor", "$dynamicRef", "$recursiveRef", "additionalItems", "contains", "dependencies"),
        *("dependentRequired", "dependentSchemas", "else", "if", "maxProperties", "minProperties", "multipleOf", "not"),
        *("pattern", "patternProperties", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
    }
)
"""Keywords that a grammar cannot hold to, or that are rare."""
ANNOTATIONS = frozenset(
    {
        *("$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description"),
        *("discriminator", "examples", "readOnly", "title", "writeOnly"),
    }
)
"""Keywords that say nothing about what is valid."""


class SchemaError(ValueError):
    """A schema that cannot be turned into a grammar; the message is for a person, and says `where` in it that is."""

    where = ""

    def __str__(self) -> str:
        message = super().__str__()
        if len(self.where) < 2:
            return message
        return _("{message} (at {where})").format(message=message, where=shortened(self.where))


def length_bounds(schema: Mapping[str, Any], least: str, most: str) -> tuple[int, int | None]:
    """The values of two keywords, like minItems and maxItems; None is no maximum."""
    low, high = schema.get(least, 0), schema.get(most)
    for value in (low, 0 if high is None else high):
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise SchemaError(_("{value} is no number").format(value=shown(value)))
    if low > MAX_REPETITIONS or (high is not None and high < low):
        raise SchemaError(
            _("{least} {low} and {most} {high} leave nothing, or more than {limit}").format(
                least=least, low=low, most=most, high=high, limit=MAX_REPETITIONS
            )
        )
    return int(low), None if high is None else min(int(high), MAX_REPETITIONS)


def listed_values(schema: Mapping[str, Any]) -> list[Any]:
    """The values of enum or const that are of the type."""
    key = "const" if "const" in schema else "enum"
    beside = schema.keys() - {key, "type", *ANNOTATIONS}
    if beside:
        raise SchemaError(_("{keyword} cannot be kept by a grammar").format(keyword=f"{key} + {min(beside)}"))
    values = [schema["const"]] if "const" in schema else list_of(schema, "enum")
    kinds = schema.get("type", list(TYPES))
    values = [one for one in values if _types_of(one) & set([kinds] if isinstance(kinds, str) else kinds)]
    if not values:
        raise SchemaError(_("{keyword} is no list, or empty").format(keyword=key))
    return values


def _types_of(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    names = {bool: {"boolean"}, str: {"string"}, int: {"integer", "number"}, list: {"array"}, dict: {"object"}}
    return names.get(type(value), {"number"})


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether no value can fit both: of different types, other constants, or objects told apart by a property."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    kinds = [_kinds(schema) for schema in (one, other)]
    if kinds[0] and kinds[1] and not kinds[0] & kinds[1]:
        return True
    constants = [_constants(schema) for schema in (one, other)]
    if None not in constants and not constants[0] & constants[1]:  # type: ignore[operator]
        return True
    names = [set(schema.get("required", ())) & set(schema.get("properties", ())) for schema in (one, other)]
    return any(apart(one["properties"][name], other["properties"][name]) for name in names[0] & names[1])


def _kinds(schema: Any) -> set[str]:
    kinds = schema.get("type", ()) if isinstance(schema, dict) else ()
    return {"number" if kind == "integer" else str(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)}


def _constants(schema: Any) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return {json.dumps(value, sort_keys=True) for value in values} if isinstance(values, list) else None


def implied_type(schema: Mapping[str, Any]) -> str | None:
    """The type that the keywords of a schema without one are about, so that they count."""
    about = {
        "object": {"properties", "required", "additionalProperties"},
        "array": {"items", "prefixItems", "minItems", "maxItems"},
        "string": {"minLength", "maxLength", "format"},
        "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    }
    return next((kind for kind, keywords in about.items() if keywords & schema.keys()), None)


def list_of(schema: Mapping[str, Any], key: str) -> list[Any]:
    """The list that a keyword has. Raises SchemaError where it is none, or empty."""
    values = schema[key]
    if not isinstance(values, list) or not values:
        raise SchemaError(_("{keyword} is no list, or empty").format(keyword=key))
    return values


def shown(value: Any) -> str:
    """The beginning of a value's JSON, for a message."""
    return shortened(json.dumps(value, ensure_ascii=False))


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else text[:57] + "..."
