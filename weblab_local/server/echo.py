"""A prompt that comes back before its answer, with log-probabilities of its own tokens: `echo` of /v1/completions."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace

from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import AsyncGeneration, Chunk, Stats, TokenLogprob
from weblab_local.engine.sampling import SamplingParams


class Echo(AsyncIterator[Chunk]):
    """A generation whose first chunk is the prompt: its text, and an entry for each of its tokens but the first.

    Where log-probabilities are wanted, an answer that the model ends has an entry for the end-of-text token too: who
    asks for one token gets one entry beyond the prompt's, whatever it is.
    """

    def __init__(
        self, engine: Engine, ids: Sequence[int], params: SamplingParams | None, n_logprobs: int | None
    ) -> None:
        """`params` None: nothing is generated."""
        self._engine = engine
        self._ids = ids
        self._params = params
        self._n_logprobs = n_logprobs
        self._is_scored = n_logprobs is not None and len(ids) > 1
        self._stats = Stats(len(ids), 0, 0, 0.0, 0.0, 0.0)
        self._cancelled = False
        self._part: AsyncGeneration | None = None
        if n_logprobs is not None and len(ids) > 1:
            self._part = engine.ascore(ids[:1], ids[1:], n_logprobs)
        elif params is not None:
            self._part = self._answer(params)
        self.begun = asyncio.Event() if self._part is None else self._part.begun
        """Set when the first part is no longer waiting for its turn, but computed."""
        if self._part is None:
            self.begun.set()
        self._chunks = self._run(self._part)

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    def cancel(self) -> None:
        """End it soon. The last chunk says "cancelled"."""
        self._cancelled = True
        if self._part is not None:
            self._part.cancel()

    async def aclose(self) -> None:
        """Cancel, and give no more chunks."""
        self.cancel()
        if self._part is not None:
            await self._part.aclose()

    def _answer(self, params: SamplingParams) -> AsyncGeneration:
        return self._engine.astream(self._ids, params, raw=True, logprobs=self._n_logprobs)

    async def _run(self, part: AsyncGeneration | None) -> AsyncGenerator[Chunk, None]:
        text = b"".join(map(self._engine.piece, self._ids)).decode("utf-8", errors="replace")
        entries: tuple[TokenLogprob, ...] = ()
        if self._is_scored and part is not None:
            chunks = [chunk async for chunk in part]
            self._stats = replace(chunks[-1].stats or self._stats, prompt_tokens=len(self._ids))
            if self._cancelled:
                yield Chunk("", (), finish_reason="cancelled", stats=self._stats)
                return
            entries = tuple(entry for chunk in chunks for entry in chunk.logprobs)
            self._part = part = None if self._params is None else self._answer(self._params)
        yield Chunk(text, (), entries)
        if part is None:
            yield Chunk("", (), finish_reason="length", stats=self._stats)
            return
        tokens: list[int] = []
        n_characters = 0
        async for chunk in part:
            tokens += chunk.token_ids
            n_characters += len(chunk.text)
            if chunk.stats is None:
                yield chunk
                continue
            end = await self._end_of(tokens, n_characters) if chunk.finish_reason == "stop" else ()
            cached = self._stats.cached_tokens if self._is_scored else chunk.stats.cached_tokens
            stats = replace(chunk.stats, cached_tokens=cached)
            yield replace(chunk, stats=stats, logprobs=(*chunk.logprobs, *end))

    async def _end_of(self, tokens: Sequence[int], n_characters: int) -> Sequence[TokenLogprob]:
        """The entry of the end-of-text token; none where a stop string ended the answer, which is cut off its text."""
        written = b"".join(map(self._engine.piece, tokens)).decode("utf-8", errors="replace")
        if self._n_logprobs is None or len(written) > n_characters or self._cancelled:
            return ()
        end = int(self._engine.metadata["tokenizer.ggml.eos_token_id"])
        self._part = self._engine.ascore([*self._ids, *tokens], [end], self._n_logprobs)
        return [entry async for chunk in self._part for entry in chunk.logprobs]
