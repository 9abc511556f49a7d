"""The bodies of answers, as OpenAI writes them, and under `weblab` what goes beyond."""

import codecs
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import FinishReason, Stats, TokenLogprob

Finish = Literal["stop", "length"]


class PromptDetails(BaseModel):
    """Tokens of the prompt that were in the KV cache already."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and written, of all answers together; the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Extension(BaseModel):
    """What OpenAI's API has no place for.

    dropped_messages    the oldest messages that no longer fit the context; the system message is never dropped
    preempted           how often the answer had to give its room up to older ones, and went on later
    drafted_tokens      tokens that were guessed and computed with others; `accepted_tokens` of them are in the answer
    timed_out           the answer ended because the server's time for one was up; `finish_reason` is then "length"
    ignored             fields of the request that the answer does not depend on, each once, positions in lists left out
    speeds              tokens per second; `time_to_first_token` is in seconds, the waiting included
    """

    dropped_messages: int
    preempted: int
    drafted_tokens: int
    accepted_tokens: int
    timed_out: bool
    ignored: list[str]
    prompt_speed: float
    generation_speed: float
    time_to_first_token: float


class TopLogprob(BaseModel):
    """A token, its bytes (one token may be half a character) and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """The same of a chosen token, and the likeliest at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One entry for each token of the answer."""

    content: list[TokenLogprobs]


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer of the n."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """What /v1/chat/completions gives."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    weblab: Extension


class TextLogprobs(BaseModel):
    """Log-probabilities in the older form: lists of the same length, an entry for each token.

    `text_offset` counts characters of the text; a token that begins inside a character has that character's. With echo
    the prompt's tokens come first, and the very first, which nothing precedes, has null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One answer of the n to each prompt."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class TextCompletion(BaseModel):
    """What /v1/completions gives."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    weblab: Extension


class AdapterCard(BaseModel):
    """A LoRA adapter that the model computes with."""

    name: str
    scale: float
    license: str


class ModelCard(BaseModel):
    """The model, and what whoever uses it has to know and to show."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    max_parallel: int
    instruction_tuned: bool
    reads_ahead: bool
    license: str
    attribution: str
    adapters: list[AdapterCard]


class ModelList(BaseModel):
    """The one model that is loaded, once under each of its names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"


def finish(reason: FinishReason) -> Finish:
    """OpenAI's word for it. An answer whose time was up ended by its length."""
    return "stop" if reason == "stop" else "length"


def usage_of(prompts: Sequence[Stats], answers: Sequence[Stats]) -> Usage:
    """The sum. `prompts` has one of each prompt's answers, `answers` all of them."""
    n_prompt = sum(stats.prompt_tokens for stats in prompts)
    n_completion = sum(stats.completion_tokens for stats in answers)
    return Usage(
        prompt_tokens=n_prompt,
        completion_tokens=n_completion,
        total_tokens=n_prompt + n_completion,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(stats.cached_tokens for stats in prompts)),
    )


def extension_of(stats: Stats, *, timed_out: bool, ignored: Sequence[str], dropped_messages: int = 0) -> Extension:
    """What goes beyond OpenAI, of one answer."""
    return Extension(
        dropped_messages=dropped_messages,
        preempted=stats.preempted,
        drafted_tokens=stats.drafted_tokens,
        accepted_tokens=stats.accepted_tokens,
        timed_out=timed_out,
        ignored=list(ignored),
        prompt_speed=stats.prompt_speed,
        generation_speed=stats.generation_speed,
        time_to_first_token=stats.time_to_first_token,
    )


def chat_logprobs(engine: Engine, entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Log-probabilities in the form of /v1/chat/completions."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = engine.piece(token)
        return {"token": data.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(data)}

    return ChatLogprobs(
        content=[
            TokenLogprobs(
                **one(entry.token_id, entry.logprob), top_logprobs=[TopLogprob(**one(*top)) for top in entry.top]
            )
            for entry in entries
        ]
    )


def text_logprobs(
    engine: Engine, entries: Sequence[TokenLogprob], before: bytes = b"", first: int | None = None
) -> TextLogprobs:
    """The same in the form of /v1/completions. `before` are the bytes of the tokens so far.

    `first`: the token that stands before those of the `entries` and after nothing.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    n_characters = len(decoder.decode(before))
    tokens, offsets = [], []
    unknown = [] if first is None else [first]
    for token in [*unknown, *(entry.token_id for entry in entries)]:
        piece = engine.piece(token)
        tokens.append(_as_text(piece))
        offsets.append(n_characters)
        n_characters += len(decoder.decode(piece))
    tops = [{_as_text(engine.piece(token)): logprob for token, logprob in entry.top} for entry in entries]
    return TextLogprobs(
        tokens=tokens,
        token_logprobs=[*(None for _ in unknown), *(entry.logprob for entry in entries)],
        top_logprobs=[*(None for _ in unknown), *tops],
        text_offset=offsets,
    )


def _as_text(piece: bytes) -> str:
    """A token's text, or `bytes:` and its bytes in hexadecimal where they are no whole characters."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
