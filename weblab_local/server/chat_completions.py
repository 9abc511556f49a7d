"""POST /v1/chat/completions: a conversation in, its next answer out, whole or as it comes."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from weblab_local.generation import Chunk, complete
from weblab_local.server.answers import Piece, Question, Reading
from weblab_local.server.conversation import Conversation
from weblab_local.server.requests import ChatRequest, StreamOptions
from weblab_local.server.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    chat_logprobs,
    extension_of,
    finish,
    usage_of,
)
from weblab_local.server.state import ServerState


class ChatAnswer:
    """One request on its way: the conversation as ids, and what has come of its n answers."""

    def __init__(self, state: ServerState, body: ChatRequest, conversation: Conversation) -> None:
        self._state = state
        self._body = body
        self._conversation = conversation
        self._chunks: list[list[Chunk]] = [[] for _ in range(body.n)]
        self._timed_out = [False] * body.n
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    @classmethod
    async def of(cls, state: ServerState, body: ChatRequest) -> "ChatAnswer":
        """Read the request. Raises ApiError and PromptError for what cannot be answered."""
        state.require_model(body.model)
        conversation = await asyncio.to_thread(  # a long text takes a while to become ids
            Conversation, body.messages, body.most_tokens, state.engine, state.memory
        )
        return cls(state, body, conversation)

    async def whole(self) -> ChatCompletion:
        """All answers, when the last has ended."""
        async with aclosing(self._events(progress=False)) as events:
            async for _event in events:
                pass
        answers = [complete(chunks) for chunks in self._chunks]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._state.model_id,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=answer.text),
                    logprobs=chat_logprobs(self._state.engine, answer.logprobs) if self._body.logprobs else None,
                    finish_reason=finish(answer.finish_reason),
                )
                for index, answer in enumerate(answers)
            ],
            usage=usage_of([answers[0].stats], [answer.stats for answer in answers]),
            weblab=extension_of(answers[0].stats, self._conversation.dropped_messages, any(self._timed_out)),
        )

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answers as `chat.completion.chunk` objects."""
        options = self._body.stream_options or StreamOptions()
        begun: set[int] = set()
        async with aclosing(self._events(progress=options.include_progress)) as events:
            async for event in events:
                if isinstance(event, Reading):
                    yield self._object([], progress={"done": event.done, "total": event.total})
                    continue
                if event.index not in begun:
                    begun.add(event.index)
                    dropped = {"dropped_messages": self._conversation.dropped_messages}
                    yield self._object([_choice(event.index, {"role": "assistant", "content": ""})], weblab=dropped)
                for one in self._piece_objects(event):
                    yield one
        if options.include_usage:
            stats = [complete(chunks).stats for chunks in self._chunks]
            yield self._object([], usage=usage_of(stats[:1], stats).model_dump())

    def _piece_objects(self, piece: Piece) -> Sequence[dict[str, Any]]:
        chunk = piece.chunk
        objects = []
        if chunk.text or chunk.logprobs:
            logprobs = chat_logprobs(self._state.engine, chunk.logprobs).model_dump() if self._body.logprobs else None
            objects.append(self._object([_choice(piece.index, {"content": chunk.text}, logprobs)]))
        if chunk.finish_reason is not None and chunk.stats is not None:
            ended = _choice(piece.index, {}, finish_reason=finish(chunk.finish_reason))
            extension = extension_of(chunk.stats, self._conversation.dropped_messages, piece.timed_out)
            objects.append(self._object([ended], weblab=extension.model_dump()))
        return objects

    async def _events(self, *, progress: bool) -> AsyncGenerator[Piece | Reading, None]:
        """The engine's events, taken down on the way; an answer that has ended is remembered."""
        questions = [
            Question(
                self._conversation.ids,
                self._body.sampling_params(choice, self._conversation.max_tokens, self._body.json_schema),
                raw=False,
                n_logprobs=self._body.n_logprobs,
            )
            for choice in range(self._body.n)
        ]
        async with aclosing(self._state.answer(questions, progress=progress)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    chunks = self._chunks[event.index]
                    chunks.append(event.chunk)
                    self._timed_out[event.index] = event.timed_out
                    if event.chunk.finish_reason is not None:
                        self._conversation.remember(complete(chunks))
                yield event

    def _object(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._state.model_id,
            "choices": choices,
            **more,
        }


def _choice(
    index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
