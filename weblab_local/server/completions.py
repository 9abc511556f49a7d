"""POST /v1/completions: text to go on with, without the model's template."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from weblab_local.engine.generation import Completion
from weblab_local.server.choices import Choice, ChoiceChunk, PrefillProgress
from weblab_local.server.completion_run import CompletionRun
from weblab_local.server.fields import Body
from weblab_local.server.request_bodies import CompletionRequest, StreamOptions
from weblab_local.server.response_bodies import (
    TextChoice,
    TextCompletion,
    finish,
    text_logprobs,
    usage_of,
)
from weblab_local.server.state import ServerState


class TextCompletionRun(CompletionRun):
    """A text completion under way: n choices for each of its prompts."""

    ID_PREFIX = "cmpl"
    STREAM_OBJECT = "text_completion"

    def __init__(
        self, state: ServerState, body: CompletionRequest, prompts: Sequence[Sequence[int]], ignored: Sequence[str]
    ) -> None:
        """Raises SamplingError for parameters that cannot be."""
        most_tokens = state.engine.longest_sequence if body.most_tokens is None else body.most_tokens
        choices = [
            Choice(
                ids,
                body.sampling_params(choice, most_tokens) if most_tokens else None,
                raw=True,
                n_logprobs=body.logprobs,
                echo=body.echo,
            )
            for ids in prompts
            for choice in range(body.n)
        ]
        super().__init__(state, choices, ignored)
        self._body = body
        self._firsts = [choice.prompt_ids[0] if body.echo else None for choice in choices]
        """For each choice, the prompt's first token where it is to be echoed."""
        self._streamed = [b""] * len(choices)
        """For each choice, the bytes of the tokens that were sent."""

    @classmethod
    async def prepare(
        cls, state: ServerState, body: CompletionRequest, sent: Body | None = None
    ) -> "TextCompletionRun":
        """Tokenize the request. `sent`: what `body` was made of, in another API's form.

        Raises ApiError, PromptError and SamplingError for what cannot be answered.
        """
        state.require_model(body.model)
        ignored = state.ignored(sent or body)
        room = 0 if body.most_tokens == 0 else 1

        def tokenized() -> "TextCompletionRun":
            prompts = [state.engine.raw_prompt(prompt, room, special=body.special) for prompt in body.prompts]
            return cls(state, body, prompts, ignored)

        run, places = await state.prepare(len(body.prompts) * body.n, tokenized)
        run.places = places
        return run

    async def whole(self) -> TextCompletion:
        """Return all choices, when the last has ended."""
        completions = await self.completed()
        return await asyncio.to_thread(self._response, completions)  # thousands of log-probabilities take a while

    def _response(self, completions: Sequence[Completion]) -> TextCompletion:
        wanted = self._body.logprobs is not None
        stats = [completion.stats for completion in completions]
        return TextCompletion(
            id=self._id,
            created=self.created,
            model=self._state.model_id,
            choices=[
                TextChoice(
                    index=index,
                    text=completion.text,
                    logprobs=text_logprobs(self._state.engine, completion.logprobs, first=self._firsts[index])
                    if wanted
                    else None,
                    finish_reason=finish(completion.finish_reason),
                )
                for index, completion in enumerate(completions)
            ],
            usage=usage_of(stats[:: self._body.n], stats),
            weblab=self.extension(stats[0], timed_out=self.timed_out),
        )

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield `text_completion` objects."""
        options = self._body.stream_options or StreamOptions()
        async with aclosing(self.events(progress=options.include_progress)) as events:
            async for event in events:
                yield self._progress_object(event) if isinstance(event, PrefillProgress) else self._chunk_object(event)
        if options.include_usage:
            stats = [completion.stats for completion in self.completions]
            yield self._stream_object([], usage=usage_of(stats[:: self._body.n], stats).model_dump())

    def _chunk_object(self, choice_chunk: ChoiceChunk) -> dict[str, Any]:
        chunk = choice_chunk.chunk
        logprobs = None
        if self._body.logprobs is not None:
            index = choice_chunk.index
            first, self._firsts[index] = self._firsts[index], None
            logprobs = text_logprobs(self._state.engine, chunk.logprobs, self._streamed[index], first).model_dump()
            sent = chunk.token_ids if first is None else self._choices[index].prompt_ids
            self._streamed[index] += b"".join(map(self._state.engine.piece, sent))
        choice = {
            "index": choice_chunk.index,
            "text": chunk.text,
            "logprobs": logprobs,
            "finish_reason": None if chunk.finish_reason is None else finish(chunk.finish_reason),
        }
        if chunk.stats is None:
            return self._stream_object([choice])
        extension = self.extension(chunk.stats, timed_out=choice_chunk.timed_out)
        return self._stream_object([choice], weblab=extension.model_dump())
