"""POST /v1/chat/completions: a conversation in, its next answer out, whole or as it comes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from weblab_local.engine.generation import Completion
from weblab_local.server.choices import Choice, ChoiceChunk, PrefillProgress
from weblab_local.server.completion_run import CompletionRun
from weblab_local.server.conversation import Conversation
from weblab_local.server.fields import Body
from weblab_local.server.request_bodies import ChatCompletionRequest, StreamOptions
from weblab_local.server.response_bodies import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    chat_logprobs,
    finish,
    usage_of,
)
from weblab_local.server.state import ServerState


class ChatCompletionRun(CompletionRun):
    """A chat completion under way: the conversation as ids, and its n choices."""

    ID_PREFIX = "chatcmpl"
    STREAM_OBJECT = "chat.completion.chunk"

    def __init__(
        self, state: ServerState, body: ChatCompletionRequest, conversation: Conversation, ignored: Sequence[str]
    ) -> None:
        """Raises SamplingError for parameters that cannot be, and where they leave no room for any answer."""
        params = [body.sampling_params(n, conversation.max_tokens, body.answer_schema) for n in range(body.n)]
        state.engine.require_room(conversation.prompt_ids, params[0])
        choices = [Choice(conversation.prompt_ids, one, raw=False, n_logprobs=body.n_logprobs) for one in params]
        super().__init__(state, choices, ignored)
        self._body = body
        self._conversation = conversation
        self.dropped_messages = conversation.dropped_messages

    @classmethod
    async def prepare(
        cls, state: ServerState, body: ChatCompletionRequest, sent: Body | None = None
    ) -> "ChatCompletionRun":
        """Tokenize the request. `sent`: what `body` was made of, in another API's form.

        Raises ApiError, PromptError and SamplingError for what cannot be answered.
        """
        state.require_model(body.model)
        ignored = state.ignored(sent or body)

        def tokenized() -> "ChatCompletionRun":
            conversation = Conversation(
                body.messages,
                body.most_tokens,
                state.engine,
                state.generated_ids,
                continue_final_message=body.continue_final_message,
            )
            return cls(state, body, conversation, ignored)

        run, places = await state.prepare(body.n, tokenized)
        run.places = places
        return run

    async def whole(self) -> ChatCompletion:
        """Return all choices, when the last has ended."""
        completions = await self.completed()
        return await asyncio.to_thread(self._response, completions)  # thousands of log-probabilities take a while

    def _response(self, completions: Sequence[Completion]) -> ChatCompletion:
        return ChatCompletion(
            id=self._id,
            created=self.created,
            model=self._state.model_id,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=completion.text),
                    logprobs=chat_logprobs(self._state.engine, completion.logprobs) if self._body.logprobs else None,
                    finish_reason=finish(completion.finish_reason),
                )
                for index, completion in enumerate(completions)
            ],
            usage=usage_of([completions[0].stats], [completion.stats for completion in completions]),
            weblab=self.extension(completions[0].stats, timed_out=self.timed_out),
        )

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield `chat.completion.chunk` objects."""
        options = self._body.stream_options or StreamOptions()
        begun: set[int] = set()
        async with aclosing(self.events(progress=options.include_progress)) as events:
            async for event in events:
                if isinstance(event, PrefillProgress):
                    yield self._progress_object(event)
                    continue
                if event.index not in begun:
                    begun.add(event.index)
                    first = _choice(event.index, {"role": "assistant", "content": ""})
                    dropped = {"dropped_messages": self.dropped_messages}
                    yield self._stream_object([first], weblab=dropped)
                for one in self._chunk_objects(event):
                    yield one
        if options.include_usage:
            stats = [completion.stats for completion in self.completions]
            yield self._stream_object([], usage=usage_of(stats[:1], stats).model_dump())

    def _chunk_objects(self, choice_chunk: ChoiceChunk) -> Sequence[dict[str, Any]]:
        chunk = choice_chunk.chunk
        objects = []
        if chunk.text or chunk.logprobs:
            logprobs = chat_logprobs(self._state.engine, chunk.logprobs).model_dump() if self._body.logprobs else None
            objects.append(self._stream_object([_choice(choice_chunk.index, {"content": chunk.text}, logprobs)]))
        if chunk.finish_reason is not None and chunk.stats is not None:
            ended = _choice(choice_chunk.index, {}, finish_reason=finish(chunk.finish_reason))
            extension = self.extension(chunk.stats, timed_out=choice_chunk.timed_out).model_dump()
            objects.append(self._stream_object([ended], weblab=extension))
        return objects

    def _on_completed(self, completion: Completion) -> None:
        self._conversation.remember(completion)


def _choice(
    index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
