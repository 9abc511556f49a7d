"""POST /v1/completions: text to go on with, without the model's template."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from weblab_local.generation import Completion
from weblab_local.server.answering import Answering
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


class TextAnswer(Answering):
    """A completion request on its way: n answers to each of its prompts."""

    ID_PREFIX = "cmpl"
    STREAM_OBJECT = "text_completion"

    def __init__(self, state: ServerState, body: CompletionRequest, prompts: Sequence[Sequence[int]]) -> None:
        """Raises SamplingError for parameters that cannot be."""
        questions = [
            Question(ids, body.sampling_params(choice, body.max_tokens), raw=True, n_logprobs=body.logprobs)
            for ids in prompts
            for choice in range(body.n)
        ]
        super().__init__(state, questions)
        self._body = body
        self._streamed = [b""] * len(questions)
        """What of each answer was sent, in the bytes of its tokens."""

    @classmethod
    async def of(cls, state: ServerState, body: CompletionRequest) -> "TextAnswer":
        """Read the request. Raises ApiError, PromptError and SamplingError for what cannot be answered."""
        state.require_model(body.model)
        engine = state.engine

        def ids_of(prompt: str | list[int]) -> list[int]:
            return engine.tokenize(prompt) if isinstance(prompt, str) else engine.check_ids(prompt)

        n_answers = len(body.prompts) * body.n
        return await state.prepare(n_answers, lambda: cls(state, body, [ids_of(prompt) for prompt in body.prompts]))

    async def whole(self) -> TextCompletion:
        """All answers, when the last has ended."""
        answers = await self._all()
        return await asyncio.to_thread(self._completion, answers)  # thousands of log-probabilities take a while

    def _completion(self, answers: Sequence[Completion]) -> TextCompletion:
        wanted = self._body.logprobs is not None
        stats = [answer.stats for answer in answers]
        return TextCompletion(
            id=self._id,
            created=self._created,
            model=self._state.model_id,
            choices=[
                TextChoice(
                    index=index,
                    text=answer.text,
                    logprobs=text_logprobs(self._state.engine, answer.logprobs) if wanted else None,
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
                yield self._progress_object(event) if isinstance(event, Reading) else self._piece_object(event)
        if options.include_usage:
            stats = [answer.stats for answer in self._answers]
            yield self._stream_object([], usage=usage_of(stats[:: self._body.n], stats).model_dump())

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
            return self._stream_object([choice])
        return self._stream_object([choice], weblab=extension_of(chunk.stats, 0, piece.timed_out).model_dump())
