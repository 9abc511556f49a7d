"""The messages of a conversation, as requests have them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from weblab_local.i18n import _
from weblab_local.server.fields import Body, Refused

MOST_MESSAGES = 2048
MOST_PARTS = 2048
TEXT_KINDS = ("text", "input_text", "output_text")
"""What a piece of text is called in OpenAI's APIs."""


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


_Parts = Annotated[list[TextPart], Field(fail_fast=True)]


def _text_parts(content: object) -> object:
    """Refuse too many parts, and the kinds that are no text, by name."""
    if not isinstance(content, list):
        return content
    if len(content) > MOST_PARTS:
        sizes = {"field_type": "List", "max_length": MOST_PARTS, "actual_length": len(content)}
        raise PydanticKnownError("too_long", sizes)
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in TEXT_KINDS:
            raise ValueError(_("this model reads text, not {kind}.").format(kind=kind))
    return content


class ChatMessage(Body):
    """A message of a conversation. `developer` is `system` under its newer name."""

    MAY_BE_MISSING = ("content",)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | _Parts, BeforeValidator(_text_parts, str | _Parts)]
    tool_calls: Refused = Field(None, description="Refused: calls would have to be read.")
    function_call: Refused = Field(None, description="Refused, as tool_calls.")
    audio: Refused = Field(None, description="Refused: sound would have to be heard.")

    @model_validator(mode="before")
    @classmethod
    def _without_text(cls, data: Any) -> Any:
        """An assistant's message may come without content, which is an empty answer."""
        if isinstance(data, dict) and data.get("role") == "assistant" and data.get("content") is None:
            return {**data, "content": ""}
        return data

    @classmethod
    def of(cls, role: str, text: str) -> "ChatMessage":
        """A message of that role."""
        return cls.model_validate({"role": role, "content": text})

    @property
    def is_system(self) -> bool:
        """Whether it stands beside the conversation instead of being a part of it."""
        return self.role in ("system", "developer")

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
