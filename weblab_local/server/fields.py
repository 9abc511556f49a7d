"""How a request's fields are taken: honoured, refused because the answer would be another one, or left unused.

A field that no body knows changes nothing, at any depth: it is accepted, and the answer names it. Programs send many.
One is refused only where whoever sent it would take what comes for something else.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

Place = tuple[str | int, ...]
"""Where in a body something stands: names of fields, and positions in lists."""

MOST_NAMES = 64
"""Unused fields that an answer names; who sends more does not read them."""


def _described(schema: dict[str, Any], model: "type[Body]") -> None:
    """Say in a body's JSON schema that null is as good as nothing, and which fields may be missing after all."""
    required = [name for name in schema.get("required", ()) if name not in model.MAY_BE_MISSING]
    schema["required"] = required
    fields: dict[str, Any] = schema.get("properties", {})
    fields.update(
        {name: {"anyOf": [field, {"type": "null"}]} for name, field in fields.items() if name not in required}
    )


class Body(BaseModel):
    """A body of a request, or an object in one."""

    MAY_BE_MISSING: ClassVar[Sequence[str]] = ()
    """Fields that are filled in before they are missed."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=_described)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        """Leave out what is null, some clients' way to say "not given"."""
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def idle(self) -> Iterator[str]:
        """Yield the fields known here that this request does not depend on."""
        yield from ()


def unused_fields(value: object, place: Place = ()) -> Iterator[Place]:
    """Yield the places of all fields in a body that its answer does not depend on."""
    if isinstance(value, Body):
        idle = tuple(value.idle())
        yield from ((*place, name) for name in (*(value.model_extra or ()), *idle))
        for name, field in type(value).model_fields.items():
            if name in value.model_fields_set and name not in idle:
                yield from unused_fields(getattr(value, name), (*place, field.alias or name))
    elif isinstance(value, list) and value and isinstance(value[0], Body):
        for position, entry in enumerate(value):
            yield from unused_fields(entry, (*place, position))


def unsupported() -> PydanticCustomError:
    """The error for a field that is refused by its name."""
    return PydanticCustomError("unsupported", "not supported")


def _nothing(value: object) -> object:
    if value:
        raise unsupported()
    return value


Refused = Annotated[Any, AfterValidator(_nothing)]
"""A field that may only be empty: with a value the answer would have to be another one."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Takes 1.0 for 1: some languages' JSON has no other numbers."""
