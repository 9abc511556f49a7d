"""What a request gives: chunks while it runs, a completion at its end, and the handle to read or cancel it."""

import asyncio
import queue
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a generated token (natural logarithm, before any sampling), and the likeliest there."""

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Stats:
    """Counts in tokens, times in seconds, speeds in tokens per second."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prompt_seconds: float
    generation_seconds: float
    time_to_first_token: float

    @property
    def prompt_speed(self) -> float:
        """Tokens of the prompt that were computed, not those taken from the cache, per second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_speed(self) -> float:
        """Tokens per second after the first."""
        return max(self.completion_tokens - 1, 0) / self.generation_seconds if self.generation_seconds else 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: whole characters, and the tokens they came from.

    Every chunk has text, except perhaps the last, which says why the answer ended and carries the counts.
    """

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: FinishReason | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer. `text` ends before a stop string; `token_ids` are all that were generated, without the end."""

    text: str
    token_ids: Sequence[int]
    finish_reason: FinishReason
    stats: Stats
    logprobs: Sequence[TokenLogprob] = field(default=(), repr=False)


Emit = Callable[[Chunk | BaseException], None]


class Generation(Iterator[Chunk]):
    """A running request: iterate over it for its chunks. Closing it, or letting go of it, cancels the request.

    `emit` is where the worker puts events; it does not keep this object alive.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._events: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()
        self.emit: Emit = self._events.put
        self._cancel = cancel
        self._done = False

    def __next__(self) -> Chunk:
        if self._done:
            raise StopIteration
        event = self._next_event()
        if isinstance(event, BaseException):
            self._done = True
            raise event
        self._done = event.finish_reason is not None
        return event

    def _next_event(self) -> Chunk | BaseException:
        while sys.platform == "win32":  # there Ctrl-C does not interrupt a wait without an end
            with suppress(queue.Empty):
                return self._events.get(timeout=0.2)
        return self._events.get()

    def cancel(self) -> None:
        """End the answer at the next token, or in the middle of the prompt. The last chunk says "cancelled"."""
        self._cancel()

    def close(self) -> None:
        """Cancel, and give no more chunks."""
        self._done = True
        self._cancel()

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._done:
            self._cancel()


class AsyncGeneration(AsyncIterator[Chunk]):
    """The same for asyncio. Cancelling the task that reads it cancels the request."""

    def __init__(self, cancel: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        events: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()

        def emit(event: Chunk | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody is there to read it
                loop.call_soon_threadsafe(events.put_nowait, event)

        self.emit: Emit = emit
        self._events = events
        self._cancel = cancel
        self._done = False

    async def __anext__(self) -> Chunk:
        if self._done:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(event, BaseException):
            self._done = True
            raise event
        self._done = event.finish_reason is not None
        return event

    def cancel(self) -> None:
        """End the answer at the next token, or in the middle of the prompt. The last chunk says "cancelled"."""
        self._cancel()

    async def aclose(self) -> None:
        """Cancel, and give no more chunks."""
        self._done = True
        self._cancel()

    async def __aenter__(self) -> "AsyncGeneration":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._done:
            self._cancel()


def complete(chunks: Sequence[Chunk]) -> Completion:
    """All chunks of a request as one completion."""
    last = chunks[-1] if chunks else None
    if last is None or last.finish_reason is None or last.stats is None:
        raise ValueError("The last chunk of a request is missing.")
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        finish_reason=last.finish_reason,
        stats=last.stats,
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
    )
