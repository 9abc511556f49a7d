"""POST /v1/chat/completions: a conversation in, its next answer out, whole or as it comes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from weblab_local.generation import Completion
from weblab_local.server.answering import Answering
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


class ChatAnswer(Answering):
    """A chat request on its way: the conversation as ids, and its n answers."""

    ID_PREFIX = "chatcmpl"
    STREAM_OBJECT = "chat.completion.chunk"

    def __init__(self, state: ServerState, body: ChatRequest, conversation: Conversation) -> None:
        """Raises SamplingError for parameters that cannot be."""
        questions = [
            Question(
                conversation.ids,
                body.sampling_params(choice, conversation.max_tokens, body.json_schema),
                raw=False,
                n_logprobs=body.n_logprobs,
            )
            for choice in range(body.n)
        ]
        super().__init__(state, questions)
        self._body = body
        self._conversation = conversation

    @classmethod
    async def of(cls, state: ServerState, body: ChatRequest) -> "ChatAnswer":
        """Read the request. Raises ApiError, PromptError and SamplingError for what cannot be answered."""
        state.require_model(body.model)

        def read() -> "ChatAnswer":
            return cls(state, body, Conversation(body.messages, body.most_tokens, state.engine, state.memory))

        return await state.prepare(body.n, read)

    async def whole(self) -> ChatCompletion:
        """All answers, when the last has ended."""
        answers = await self._all()
        return await asyncio.to_thread(self._completion, answers)  # thousands of log-probabilities take a while

    def _completion(self, answers: Sequence[Completion]) -> ChatCompletion:
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
            weblab=extension_of(answers[0].stats, self._conversation.dropped_messages, self._timed_out),
        )

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answers as `chat.completion.chunk` objects."""
        options = self._body.stream_options or StreamOptions()
        begun: set[int] = set()
        async with aclosing(self._events(progress=options.include_progress)) as events:
            async for event in events:
                if isinstance(event, Reading):
                    yield self._progress_object(event)
                    continue
                if event.index not in begun:
                    begun.add(event.index)
                    first = _choice(event.index, {"role": "assistant", "content": ""})
                    dropped = {"dropped_messages": self._conversation.dropped_messages}
                    yield self._stream_object([first], weblab=dropped)
                for one in self._piece_objects(event):
                    yield one
        if options.include_usage:
            stats = [answer.stats for answer in self._answers]
            yield self._stream_object([], usage=usage_of(stats[:1], stats).model_dump())

    def _piece_objects(self, piece: Piece) -> Sequence[dict[str, Any]]:
        chunk = piece.chunk
        objects = []
        if chunk.text or chunk.logprobs:
            logprobs = chat_logprobs(self._state.engine, chunk.logprobs).model_dump() if self._body.logprobs else None
            objects.append(self._stream_object([_choice(piece.index, {"content": chunk.text}, logprobs)]))
        if chunk.finish_reason is not None and chunk.stats is not None:
            ended = _choice(piece.index, {}, finish_reason=finish(chunk.finish_reason))
            extension = extension_of(chunk.stats, self._conversation.dropped_messages, piece.timed_out)
            objects.append(self._stream_object([ended], weblab=extension.model_dump()))
        return objects

    def _ended(self, answer: Completion) -> None:
        self._conversation.remember(answer)


def _choice(
    index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
