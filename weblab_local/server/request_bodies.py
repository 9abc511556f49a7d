"""The bodies of requests: OpenAI's fields that an engine like this can honour, and llama.cpp's samplers beside them.

GBNF grammars are not among them: a short one can keep llama.cpp busy for hours, and nothing can interrupt it there.
They are refused by name, as are others that would make the answer another one; `fields` says how the rest is taken.

pydantic collects every error, which takes seconds for a body of 1 MB that is all wrong, while nobody else is served. So
lists end at their first bad entry (fail_fast), and objects are cut down to the first complaint before it sees them.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from weblab_local.engine.sampling import MAX_SEED, SamplingParams
from weblab_local.i18n import _
from weblab_local.server.fields import WHOLE, Body, Refused, unsupported
from weblab_local.server.messages import MOST_MESSAGES, ChatMessage

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_LOGPROBS = 20
MOST_BIASES = 2048
TO_THE_END = -1
ANY_SEED = -1
"""llama.cpp's and Ollama's way to say that a seed is to be drawn."""


class StreamOptions(Body):
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


def _only_text(modalities: object) -> object:
    if modalities not in (["text"], []):
        raise unsupported()
    return modalities


class GenerationRequest(Body):
    """What both kinds of completion take: how to sample, how many choices, whether to stream."""

    model: str | None = Field(None, description="The id that /v1/models gives; may be left out.")
    temperature: float = Field(0.7, ge=0, le=100)
    top_p: float = Field(0.95, ge=0, le=1)
    top_k: Annotated[int, WHOLE] = Field(
        50, ge=-1, le=2**31 - 1, description="Beyond OpenAI: only the k likeliest tokens; 0 and -1 are off."
    )
    min_p: float = Field(0.0, ge=0, le=1, description="Beyond OpenAI: only tokens this likely beside the likeliest.")
    repeat_penalty: float = Field(1.0, ge=0.01, le=100, description="Beyond OpenAI: 1 is off.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="The same under transformers' name.")
    presence_penalty: float = Field(0.0, ge=-100, le=100)
    frequency_penalty: float = Field(0.0, ge=-100, le=100)
    seed: Annotated[int | None, WHOLE] = Field(
        None, description="Makes a run repeatable on the same machine; -1 draws one, as none does."
    )
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = Field(
        None, description="Texts that end the answer; empty ones do not."
    )
    n: Annotated[int, WHOLE] = Field(1, ge=1, le=MOST_CHOICES)
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_first_bad_bias)] = Field(
        None, max_length=MOST_BIASES, description="Token id to what is added to its logit."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted; nothing depends on it.")
    n_predict: Annotated[int | None, WHOLE] = Field(
        None, ge=-1, lt=2**31, description="max_tokens under llama.cpp's name."
    )
    modalities: Annotated[Any, AfterValidator(_only_text)] = Field(None, description="Text is the only one there is.")
    audio: Refused = Field(None, description="Refused: there is no voice.")
    grammar: Refused = Field(None, description="Refused: response_format takes a JSON schema.")
    json_schema: Refused = Field(None, description="Refused: it belongs into response_format.")
    guided_json: Refused = Field(None, description="Refused, as json_schema.")
    guided_regex: Refused = Field(None, description="Refused, as grammar.")
    guided_choice: Refused = Field(None, description="Refused, as grammar.")
    guided_grammar: Refused = Field(None, description="Refused, as grammar.")
    structured_outputs: Refused = Field(None, description="Refused, as grammar.")

    def idle(self) -> Iterator[str]:
        """Yield what another field has made useless, and options of a stream that none is."""
        if self.stream_options is not None and not self.stream:
            yield "stream_options"
        if "repeat_penalty" in self.model_fields_set and self.repetition_penalty not in (None, self.repeat_penalty):
            yield "repetition_penalty"

    @model_validator(mode="after")
    def _check(self) -> "GenerationRequest":
        if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in self.logit_bias or ()):
            raise ValueError(_("The keys of logit_bias are token ids."))
        return self

    def sampling_params(
        self, choice: int, max_tokens: int, json_schema: dict[str, Any] | None = None
    ) -> SamplingParams:
        """The parameters for one of the n choices, each with a seed of its own. Raises SamplingError."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self._repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed in (None, ANY_SEED) else (self.seed + choice) % (MAX_SEED + 1),
            max_tokens=max_tokens,
            stop=[text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or ()) if text],
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            json_schema=json_schema,
        )

    @property
    def _repeat_penalty(self) -> float:
        if "repeat_penalty" in self.model_fields_set or self.repetition_penalty is None:
            return self.repeat_penalty
        return self.repetition_penalty


class JsonSchema(Body):
    """A JSON schema under a name."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Free text, as without a format."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object, or, as llama.cpp has it, one that fits a schema."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class JsonSchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _not_forced(choice: object) -> object:
    """Refuse a choice of tools by which one has to be called. What may be called may be left alone."""
    if isinstance(choice, dict):
        inner = choice.get("allowed_tools")
        mode = inner.get("mode") if isinstance(inner, dict) else None
        choice = mode if choice.get("type") == "allowed_tools" else choice.get("type")
    if choice not in ("auto", "none"):
        raise unsupported()
    return choice


_Limit = Annotated[int | None, WHOLE]
ToolChoice = Annotated[Any, AfterValidator(_not_forced)]


class ChatCompletionRequest(GenerationRequest):
    """A conversation, of which the next answer is wanted."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: _Limit = Field(
        None, ge=-1, lt=2**31, description="Of the answer; without it, 0 and -1: to the end of the context."
    )
    max_completion_tokens: _Limit = Field(None, ge=-1, lt=2**31, description="The same under its newer name.")
    logprobs: bool = False
    top_logprobs: Annotated[int | None, WHOLE] = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = Field(
        None, description="Whether an assistant's last message is gone on with, as it is unless this is false."
    )
    tool_choice: ToolChoice = Field(None, description="Refused where a tool has to be called; none ever is.")
    function_call: ToolChoice = Field(None, description="Refused, as tool_choice.")

    def idle(self) -> Iterator[str]:
        """Yield the same, and what is known only to be refused where it has to be."""
        yield from super().idle()
        yield from (name for name in ("tool_choice", "function_call") if name in self.model_fields_set)
        if self.top_logprobs is not None and not self.logprobs:
            yield "top_logprobs"
        limits = {name: getattr(self, name) for name in _LIMITS if name in self.model_fields_set}
        yield from (name for name, value in limits.items() if value != next(iter(limits.values())))

    @property
    def most_tokens(self) -> int | None:
        """The answer's limit, None where it is the context."""
        limit = next((getattr(self, name) for name in _LIMITS if name in self.model_fields_set), None)
        return limit if limit is not None and limit > 0 else None

    @property
    def n_logprobs(self) -> int | None:
        """Alternatives wanted for each token; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The schema that the answer has to fit, {} for any object, None for free text."""
        match self.response_format:
            case JsonObjectFormat(schema_=schema):
                return schema or {}
            case JsonSchemaFormat(json_schema=JsonSchema(schema_=schema)):
                return schema
        return None


_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
"""Names of the answer's limit; the first that is given is the one that counts."""

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
    max_tokens: Annotated[int, WHOLE] = Field(
        16, ge=-1, lt=2**31, description="0, with echo: nothing is generated; -1: to the end of the context."
    )
    logprobs: Annotated[int | None, WHOLE] = Field(None, ge=0, le=MOST_LOGPROBS)
    special: bool = Field(False, description="Beyond OpenAI: special tokens that the prompt has are tokens, not text.")
    echo: bool = Field(False, description="The prompt comes back too, its tokens with log-probabilities.")
    best_of: Annotated[int | None, WHOLE] = Field(None, ge=0, description="Refused beyond n.")
    suffix: Refused = Field(None, description="Refused: only what comes after the prompt is written.")

    @field_validator("best_of")
    @classmethod
    def _no_more_than_n(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of > info.data.get("n", 1):
            raise unsupported()
        return best_of

    def idle(self) -> Iterator[str]:
        """Yield the same, and the second of two limits."""
        yield from super().idle()
        if "max_tokens" in self.model_fields_set and self.n_predict not in (None, self.max_tokens):
            yield "n_predict"

    @property
    def most_tokens(self) -> int | None:
        """The limit of each answer, None where it is the context."""
        given = "max_tokens" in self.model_fields_set or self.n_predict is None
        limit = self.max_tokens if given else self.n_predict
        return None if limit == TO_THE_END else limit

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
        if self.most_tokens == 0 and not self.echo:
            raise ValueError(_("max_tokens 0 is for echo; without it there would be nothing to answer."))
        if len(self.prompts) * self.n > MOST_CHOICES:
            raise ValueError(_("At most {n} answers in one request.").format(n=MOST_CHOICES))
        return self
