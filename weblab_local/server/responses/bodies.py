"""What a request of the Responses API holds, and the same as a chat completion."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from weblab_local.server.fields import WHOLE, Body, Refused
from weblab_local.server.messages import MOST_MESSAGES, ChatMessage
from weblab_local.server.request_bodies import (
    ChatCompletionRequest,
    JsonObjectFormat,
    JsonSchema,
    TextFormat,
    ToolChoice,
)


class InputMessage(ChatMessage):
    """A message among the items of an input; an answer of before may be sent back as it came."""

    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None


class NamedSchemaFormat(JsonSchema):
    """JSON that fits a schema."""

    type: Literal["json_schema"]


class TextOptions(Body):
    """The form of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")] | None = None


class ResponseRequest(Body):
    """An input to answer, perhaps after what a stored response has answered."""

    input: str | Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]
    model: str | None = None
    instructions: str | None = Field(None, description="A system message for this answer alone.")
    max_output_tokens: Annotated[int | None, WHOLE] = Field(None, ge=-1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    text: TextOptions | None = None
    stream: bool = False
    store: bool = Field(True, description="Keep the answer in memory, as long as there is room.")
    previous_response_id: str | None = None
    user: str | None = Field(None, description="Accepted; nothing depends on it.")
    tool_choice: ToolChoice = Field(None, description="Refused where a tool has to be called; none ever is.")
    background: Refused = Field(None, description="Refused: an answer is computed while its client is there.")
    conversation: Refused = Field(None, description="Refused: previous_response_id goes on with one.")
    prompt: Refused = Field(None, description="Refused: no prompts are stored here.")

    def idle(self) -> Iterator[str]:
        """Yield what is known only to be refused where it has to be."""
        if "tool_choice" in self.model_fields_set:
            yield "tool_choice"

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """The input as messages."""
        return [ChatMessage.of("user", self.input)] if isinstance(self.input, str) else self.input

    def request(self, before: Sequence[ChatMessage]) -> ChatCompletionRequest:
        """The same as a chat completion, after the messages `before`. Raises ValidationError for too many of them."""
        system = [ChatMessage.of("system", self.instructions)] if self.instructions else []
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *before, *self.messages],
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "response_format": self._format,
        }
        return ChatCompletionRequest.model_validate(fields)

    @property
    def _format(self) -> dict[str, Any] | None:
        match self.text.format if self.text is not None else None:
            case NamedSchemaFormat(name=name, schema_=schema):
                return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
            case JsonObjectFormat(schema_=schema):
                return {"type": "json_object", "schema": schema}
        return None
