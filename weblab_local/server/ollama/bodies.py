"""What requests in Ollama's form hold, and the same in OpenAI's."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from weblab_local.server.errors import unsupported_parameter
from weblab_local.server.fields import Body, Refused
from weblab_local.server.messages import MOST_MESSAGES, ChatMessage
from weblab_local.server.request_bodies import ChatCompletionRequest, CompletionRequest

LATEST = ":latest"
"""The tag of a name that has none."""

FILL_THE_CONTEXT = -2
"""Ollama's `num_predict` for an answer to the end of the context."""

OPTIONS = {
    "num_predict": "max_tokens",
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "seed", "stop"),
            *("repeat_penalty", "presence_penalty", "frequency_penalty"),
        )
    },
}
"""Ollama's options that are honoured, and what they are called in OpenAI's form."""


class _Request(Body):
    """What both kinds of answer take."""

    model: str = Field("", description="A name that /api/tags gives, with or without its tag.")
    stream: bool = True
    format: str | dict[str, Any] | None = Field(None, description='"json", or a JSON schema.')
    options: dict[str, Any] | None = None

    def idle(self) -> Iterator[str]:
        """Yield the options that are not honoured."""
        yield from (f"options.{name}" for name, value in self._options if value is not None and name not in OPTIONS)

    @property
    def _options(self) -> Sequence[tuple[str, Any]]:
        return list((self.options or {}).items())

    def _in_openais_form(self) -> dict[str, Any]:
        fields = {OPTIONS[name]: value for name, value in self._options if name in OPTIONS and value is not None}
        if fields.get("max_tokens") == FILL_THE_CONTEXT:
            del fields["max_tokens"]
        if isinstance(self.format, dict):
            fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "format", "schema": self.format},
            }
        elif self.format:
            fields["response_format"] = {"type": "json_object" if self.format == "json" else self.format}
        return {**fields, "model": self.model.removesuffix(LATEST) or None}


class OllamaMessage(ChatMessage):
    """A message of a conversation, whose images come beside the text."""

    images: Refused = Field(None, description="Refused: the model reads text.")


class OllamaChat(_Request):
    """A conversation, of which the next answer is wanted; without messages the model is only to be there."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True)] = Field(
        default_factory=list, max_length=MOST_MESSAGES
    )

    def request(self) -> ChatCompletionRequest:
        """The same in OpenAI's form. Raises ValidationError for options that cannot be."""
        return ChatCompletionRequest.model_validate({**self._in_openais_form(), "messages": self.messages})


class OllamaPrompt(_Request):
    """A question, or with `raw` a text to go on with; without either the model is only to be there."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    suffix: Refused = Field(None, description="Refused: only what comes after the prompt is written.")
    images: Refused = Field(None, description="Refused: the model reads text.")
    template: Refused = Field(None, description="Refused: the model has its own.")
    context: Refused = Field(None, description="Refused: a conversation goes through /api/chat.")

    def request(self) -> ChatCompletionRequest | CompletionRequest:
        """The same in OpenAI's form. Raises ValidationError for options that cannot be, ApiError for a raw format."""
        fields = self._in_openais_form()
        if not self.raw:
            texts = {"system": self.system, "user": self.prompt}
            messages = [{"role": role, "content": text} for role, text in texts.items() if text]
            return ChatCompletionRequest.model_validate({**fields, "messages": messages})
        if self.format:
            raise unsupported_parameter("format")
        limit = fields.get("max_tokens") or -1
        return CompletionRequest.model_validate({**fields, "prompt": self.prompt, "max_tokens": limit})


class ModelName(Body):
    """A model by its name, which older programs call `name`."""

    model: str = ""
    name: str = ""
    verbose: bool = Field(False, description="Accepted; what there is is told.")

    @property
    def asked(self) -> str:
        """The name without its tag."""
        return (self.model or self.name).removesuffix(LATEST)
