"""What a request gives: chunks while it runs, a completion at its end, and the handle to read or cancel it."""

import asyncio
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from weblab_local.engine.uncopyable import Uncopyable
from weblab_local.i18n import n_
from weblab_local.llama.forks import Home

FinishReason = Literal["stop", "length", "cancelled"]

READ_IT_HERE = n_("Read it where it was made, and hand on its chunks.")
"""What to do with a running answer instead of copying it."""


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
    preempted: int = 0
    """How often it had to give up its cells of the KV cache to older requests, and read its tokens again."""
    drafted_tokens: int = 0
    """Tokens that were guessed and computed in one batch with those before them."""
    accepted_tokens: int = 0
    """Those of them that were chosen and so are in the answer: each of them saved a step."""

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


class Generation(Uncopyable, Iterator[Chunk]):
    """A running request: iterate over it for its chunks. Closing it, or letting go of it, cancels the request.

    `emit` is where the worker puts events; it does not keep this object alive.
    """

    _instead = READ_IT_HERE

    def __init__(self, cancel: Callable[[], None], before_waiting: Callable[[], None] = lambda: None) -> None:
        """`before_waiting` is called where no event is there yet; what it raises, the iteration raises."""
        self._events: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()
        self.emit: Emit = self._events.put
        self.begun = threading.Event()
        """Set when the request is no longer waiting for its turn, but computed."""
        self.on_begin: Callable[[], None] = self.begun.set
        self._cancel = cancel
        self._before_waiting = before_waiting
        self._home = Home()
        self._done = False

    def __next__(self) -> Chunk:
        if self._done:
            raise StopIteration
        self._home.require()
        event = self._next_event()
        if isinstance(event, BaseException):
            self._done = True
            raise event
        self._done = event.finish_reason is not None
        return event

    def _next_event(self) -> Chunk | BaseException:
        if self._events.empty():
            self._before_waiting()
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


class AsyncGeneration(Uncopyable, AsyncIterator[Chunk]):
    """The same for asyncio. Cancelling the task that reads it cancels the request."""

    _instead = READ_IT_HERE

    def __init__(self, cancel: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        events: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()

        def emit(event: Chunk | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody is there to read it
                loop.call_soon_threadsafe(events.put_nowait, event)

        begun = asyncio.Event()

        def on_begin() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(begun.set)

        self.emit: Emit = emit
        self.begun = begun
        """Set when the request is no longer waiting for its turn, but computed."""
        self.on_begin: Callable[[], None] = on_begin
        self._events = events
        self._cancel = cancel
        self._home = Home()
        self._done = False

    async def __anext__(self) -> Chunk:
        if self._done:
            raise StopAsyncIteration
        self._home.require()
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
