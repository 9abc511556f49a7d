"""The bodies of requests: OpenAI's fields that an engine like this can honour, and llama.cpp's samplers beside them.

GBNF grammars are not among them: a short one can keep llama.cpp busy for hours, and nothing can interrupt it there.

A field that is not here is refused by name: one that is ignored would be a promise that is not kept.

pydantic collects every error, which takes seconds for a body of 1 MB that is all wrong, while nobody else is served. So
lists end at their first bad entry (fail_fast), and objects are cut down to the first complaint before it sees them.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticKnownError

from weblab_local.engine.sampling import MAX_SEED, SamplingParams
from weblab_local.i18n import _

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_LOGPROBS = 20
MOST_MESSAGES = 2048
MOST_PARTS = 2048
MOST_BIASES = 2048
DEFAULT_MAX_TOKENS = 512


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        """Leave out what is null, some clients' way to say "not given", and all unknown fields but the first."""
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        if len(given) <= len(cls.model_fields):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        first_unknown = next(key for key in given if key not in known)
        return {key: value for key, value in given.items() if key in known or key == first_unknown}


class StreamOptions(_Body):
    """What a stream holds besides the answer. `include_progress`: how much of the prompt is read."""

    include_usage: bool = False
    include_progress: bool = False


def _first_bad_bias(biases: object) -> object:
    """Refuse too many entries, and leave only the first of those that are no numbers."""
    if not isinstance(biases, dict):
        return biases
    if len(biases) > MOST_BIASES:
        sizes = {"field_type": "Dictionary", "max_length": MOST_BIASES, "actual_length": len(biases)}
        raise PydanticKnownError("too_long", sizes)
    bad = ((token, bias) for token, bias in biases.items() if type(bias) not in (int, float))
    return dict([first]) if (first := next(bad, None)) else biases


class GenerationRequest(_Body):
    """What both kinds of completion take: how to sample, how many choices, whether to stream."""

    model: str | None = Field(None, description="The id that /v1/models gives; may be left out.")
    temperature: float = Field(0.7, ge=0, le=100)
    top_p: float = Field(0.95, ge=0, le=1)
    top_k: int = Field(50, ge=0, le=2**31 - 1, description="Beyond OpenAI: only the k likeliest tokens; 0 is off.")
    min_p: float = Field(0.0, ge=0, le=1, description="Beyond OpenAI: only tokens this likely beside the likeliest.")
    repeat_penalty: float = Field(1.0, ge=0.01, le=100, description="Beyond OpenAI: 1 is off.")
    presence_penalty: float = Field(0.0, ge=-100, le=100)
    frequency_penalty: float = Field(0.0, ge=-100, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Makes a run repeatable on the same machine.")
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = Field(
        None, description="Texts that end the answer."
    )
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_first_bad_bias)] = Field(
        None, max_length=MOST_BIASES, description="Token id to what is added to its logit."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted; nothing depends on it.")

    @model_validator(mode="after")
    def _check(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError(_("stream_options are for streams: set stream."))
        if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in self.logit_bias or ()):
            raise ValueError(_("The keys of logit_bias are token ids."))
        return self

    def sampling_params(
        self, choice: int, max_tokens: int, json_schema: dict[str, Any] | None = None
    ) -> SamplingParams:
        """The parameters for one of the n choices, each with a seed of its own. Raises SamplingError."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1),
            max_tokens=max_tokens,
            stop=self.stop or (),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            json_schema=json_schema,
        )


class TextPart(_Body):
    """A piece of a message's text."""

    type: Literal["text"]
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
        if isinstance(kind, str) and kind != "text":
            raise ValueError(_("this model reads text, not {kind}.").format(kind=kind))
    return content


class ChatMessage(_Body):
    """A message of a conversation. `developer` is `system` under its newer name."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | _Parts, BeforeValidator(_text_parts, str | _Parts)]

    @model_validator(mode="before")
    @classmethod
    def _without_text(cls, data: Any) -> Any:
        """An assistant's message may come without content, which is an empty answer."""
        if isinstance(data, dict) and data.get("role") == "assistant" and data.get("content") is None:
            return {**data, "content": ""}
        return data

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(_Body):
    """A JSON schema under a name."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextFormat(_Body):
    """Free text, as without a format."""

    type: Literal["text"]


class JsonObjectFormat(_Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(_Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(GenerationRequest):
    """A conversation, of which the next answer is wanted."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="Of the answer, which never outgrows the context.")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="The same under its newer name.")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(_("top_logprobs needs logprobs."))
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError(_("max_tokens and max_completion_tokens are the same thing; give one."))
        return self

    @property
    def most_tokens(self) -> int | None:
        """The answer's limit, None where it is left to the server."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        """Alternatives wanted for each token; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema that the answer has to fit, {} for any object, None for free text."""
        match self.response_format:
            case JsonObjectFormat():
                return {}
            case JsonSchemaFormat(json_schema=JsonSchema(schema_=schema)):
                return schema
        return None


_Ids = Annotated[list[int], Field(fail_fast=True)]
_Prompt = str | Annotated[list[str], Field(fail_fast=True)] | _Ids | Annotated[list[_Ids], Field(fail_fast=True)]


def _one_form(prompt: object) -> object:
    """Refuse a list that begins with what no prompt has, before every form is tried on every entry."""
    if isinstance(prompt, list) and prompt:
        kinds = {type(entry) for entry in prompt}
        if len(kinds) > 1 or not kinds <= {str, int, list} or (kinds == {list} and len(prompt) > MOST_CHOICES):
            raise ValueError(_("prompt is a text, token ids, or up to {n} of either.").format(n=MOST_CHOICES))
    return prompt


class CompletionRequest(GenerationRequest):
    """A text, or token ids, to go on with as they are: no template."""

    prompt: Annotated[
        _Prompt,
        BeforeValidator(_one_form),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1},
                ]
            }
        ),
    ]
    max_tokens: int = Field(16, ge=0, lt=2**31, description="0, with echo: nothing is generated.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool = Field(False, description="The prompt comes back too, its tokens with log-probabilities.")

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Each prompt: a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if all(isinstance(entry, int) for entry in prompt) else prompt  # type: ignore[list-item, return-value]

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if not self.prompt:
            raise ValueError(_("The prompt is empty."))
        if not self.max_tokens and not self.echo:
            raise ValueError(_("max_tokens 0 is for echo; without it there would be nothing to answer."))
        if len(self.prompts) * self.n > MOST_CHOICES:
            raise ValueError(_("At most {n} answers in one request.").format(n=MOST_CHOICES))
        return self
