"""Random JSON schemas that a grammar can hold, each with values that fit it."""

from typing import Any

from hypothesis import strategies as st

_NAMES = st.sampled_from(["a", "b", "名前", 'q"', "long name", "\\"])
_WORDS = st.sampled_from(["", "a", "はい", "いいえ", 'say "x"', "line\n", "\u2028", "🙂"])


def _strings() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 4), st.none() | st.integers(0, 5)).map(
        lambda bounds: (
            {"type": "string", "minLength": bounds[0]}
            | ({} if bounds[1] is None else {"maxLength": bounds[0] + bounds[1]})
        )
    )
    formats = st.sampled_from(["date", "time", "date-time", "uuid"]).map(lambda f: {"type": "string", "format": f})
    return lengths | formats


def _numbers() -> st.SearchStrategy[dict[str, Any]]:
    def bounded(kind: str, low: int, width: int | None) -> dict[str, Any]:
        return {"type": kind, "minimum": low} | ({} if width is None else {"maximum": low + width})

    kinds = st.sampled_from(["integer", "number"])
    return st.builds(bounded, kinds, st.integers(-120, 1200), st.none() | st.integers(0, 900)) | kinds.map(
        lambda kind: {"type": kind}
    )


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    listed = st.lists(_WORDS | st.integers(-9, 2000) | st.none() | st.booleans(), min_size=1, max_size=5)
    others: list[dict[str, Any]] = [{"type": "boolean"}, {"type": "null"}, {"type": ["null", "string"]}]
    return (
        _strings()
        | _numbers()
        | st.sampled_from(others)
        | listed.map(lambda values: {"enum": values})
        | _WORDS.map(lambda value: {"const": value})
    )


def _larger(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any], share: float) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[: round(share * len(properties))],
            "additionalProperties": False,
        }

    def an_array(items: dict[str, Any], least: int, more: int | None) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": least} | (
            {} if more is None else {"maxItems": least + more}
        )

    return (
        st.builds(an_object, st.dictionaries(_NAMES, parts, max_size=4), st.floats(0, 1))
        | st.builds(an_array, parts, st.integers(0, 3), st.none() | st.integers(0, 3))
        | st.lists(parts, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
        | parts.map(lambda values: {"type": "object", "additionalProperties": values})
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of all kinds, some levels deep."""
    return st.recursive(_leaves(), _larger, max_leaves=8)
