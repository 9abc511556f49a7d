"""POST /v1/completions: text to go on with, without the model's template."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from weblab_local.generation import Chunk, complete
from weblab_local.server.answers import Piece, Question, Reading
from weblab_local.server.requests import CompletionRequest, StreamOptions
from weblab_local.server.responses import (
    TextChoice,
    TextCompletion,
    extension_of,
    finish,
    text_logprobs,
    usage_of,
)
from weblab_local.server.state import ServerState


class TextAnswer:
    """One request on its way: its prompts as ids, and what has come of the n answers to each."""

    def __init__(self, state: ServerState, body: CompletionRequest, prompts: Sequence[Sequence[int]]) -> None:
        self._state = state
        self._body = body
        self._prompts = prompts
        self._chunks: list[list[Chunk]] = [[] for _ in range(len(prompts) * body.n)]
        self._streamed = [b""] * len(self._chunks)
        """What of each answer was sent, in the bytes of its tokens."""
        self._timed_out = False
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    @classmethod
    async def of(cls, state: ServerState, body: CompletionRequest) -> "TextAnswer":
        """Read the request. Raises ApiError and PromptError for what cannot be answered."""
        state.require_model(body.model)
        engine = state.engine

        def ids_of(prompt: str | list[int]) -> list[int]:
            return engine.tokenize(prompt) if isinstance(prompt, str) else engine.check_ids(prompt)

        return cls(state, body, await asyncio.to_thread(lambda: [ids_of(prompt) for prompt in body.prompts]))

    async def whole(self) -> TextCompletion:
        """All answers, when the last has ended."""
        async with aclosing(self._events(progress=False)) as events:
            async for _event in events:
                pass
        answers = [complete(chunks) for chunks in self._chunks]
        stats = [answer.stats for answer in answers]
        return TextCompletion(
            id=self._id,
            created=self._created,
            model=self._state.model_id,
            choices=[
                TextChoice(
                    index=index,
                    text=answer.text,
                    logprobs=(
                        None if self._body.logprobs is None else text_logprobs(self._state.engine, answer.logprobs)
                    ),
                    finish_reason=finish(answer.finish_reason),
                )
                for index, answer in enumerate(answers)
            ],
            usage=usage_of(stats[:: self._body.n], stats),
            weblab=extension_of(stats[0], 0, self._timed_out),
        )

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answers as `text_completion` objects."""
        options = self._body.stream_options or StreamOptions()
        async with aclosing(self._events(progress=options.include_progress)) as events:
            async for event in events:
                if isinstance(event, Reading):
                    yield self._object([], progress={"done": event.done, "total": event.total})
                else:
                    yield self._piece_object(event)
        if options.include_usage:
            stats = [complete(chunks).stats for chunks in self._chunks]
            yield self._object([], usage=usage_of(stats[:: self._body.n], stats).model_dump())

    def _piece_object(self, piece: Piece) -> dict[str, Any]:
        chunk = piece.chunk
        logprobs = None
        if self._body.logprobs is not None:
            before = self._streamed[piece.index]
            logprobs = text_logprobs(self._state.engine, chunk.logprobs, before).model_dump()
            self._streamed[piece.index] += b"".join(map(self._state.engine.piece, chunk.token_ids))
        choice = {
            "index": piece.index,
            "text": chunk.text,
            "logprobs": logprobs,
            "finish_reason": None if chunk.finish_reason is None else finish(chunk.finish_reason),
        }
        if chunk.stats is None:
            return self._object([choice])
        return self._object([choice], weblab=extension_of(chunk.stats, 0, piece.timed_out).model_dump())

    async def _events(self, *, progress: bool) -> AsyncGenerator[Piece | Reading, None]:
        """The engine's events, taken down on the way."""
        questions = [
            Question(
                ids, self._body.sampling_params(choice, self._body.max_tokens), raw=True, n_logprobs=self._body.logprobs
            )
            for ids in self._prompts
            for choice in range(self._body.n)
        ]
        async with aclosing(self._state.answer(questions, progress=progress)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    self._chunks[event.index].append(event.chunk)
                    self._timed_out |= event.timed_out
                yield event

    def _object(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._state.model_id,
            "choices": choices,
            **more,
        }
