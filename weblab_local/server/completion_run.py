"""A completion under way: what /v1/chat/completions and /v1/completions have in common."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from weblab_local.engine.generation import Chunk, Completion, Stats, complete
from weblab_local.server.admission import Places
from weblab_local.server.choices import Choice, ChoiceChunk, ChoiceEvent, PrefillProgress
from weblab_local.server.response_bodies import Extension, extension_of
from weblab_local.server.state import ServerState


class CompletionRun:
    """The choices of one request, and the chunks that each of them has given so far."""

    ID_PREFIX: ClassVar[str]
    STREAM_OBJECT: ClassVar[str]

    places: Places
    """Those of its choices, from its preparation on."""

    dropped_messages = 0
    """How many of a conversation's messages did not fit the context."""

    def __init__(self, state: ServerState, choices: Sequence[Choice], ignored: Sequence[str]) -> None:
        """`ignored`: the request's fields that the answer does not depend on."""
        self._state = state
        self._ignored = ignored
        self._choices = choices
        self._chunks: list[list[Chunk]] = [[] for _ in choices]
        self.timed_out = False
        """Whether one has ended because its time was up."""
        self.generated = asyncio.Event()
        """Set when the engine is done with all choices; a slow client may still be reading them."""
        self._id = f"{self.ID_PREFIX}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    async def events(self, *, progress: bool = False) -> AsyncGenerator[ChoiceEvent, None]:
        """Yield the engine's events, keeping every chunk."""
        async with aclosing(self._state.run(self._choices, self.places, self.generated, progress=progress)) as events:
            async for event in events:
                if isinstance(event, ChoiceChunk):
                    self._chunks[event.index].append(event.chunk)
                    self.timed_out |= event.timed_out
                    if event.chunk.stats is not None:
                        self._state.metrics.add(event.chunk.stats, timed_out=event.timed_out)
                    if event.chunk.finish_reason is not None:
                        self._on_completed(complete(self._chunks[event.index]))
                yield event

    def extension(self, stats: Stats, *, timed_out: bool) -> Extension:
        """What there is to say beyond the API's form of an answer that has ended."""
        return extension_of(stats, timed_out=timed_out, ignored=self._ignored, dropped_messages=self.dropped_messages)

    def _on_completed(self, completion: Completion) -> None:
        """Called when a choice has ended."""

    async def completed(self) -> list[Completion]:
        """Return the completion of each choice, when the last has ended."""
        async with aclosing(self.events()) as events:
            async for _event in events:
                pass
        return self.completions

    @property
    def completions(self) -> list[Completion]:
        """That of each choice, once all have ended."""
        return [complete(chunks) for chunks in self._chunks]

    def _stream_object(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": self.STREAM_OBJECT,
            "created": self.created,
            "model": self._state.model_id,
            "choices": choices,
            **more,
        }

    def _progress_object(self, progress: PrefillProgress) -> dict[str, Any]:
        return self._stream_object([], progress={"done": progress.done, "total": progress.total})
