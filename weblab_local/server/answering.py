"""What an answer to either kind of request has in common: its pieces as they come, and the frame around them."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from weblab_local.generation import Chunk, Completion, complete
from weblab_local.server.answers import Piece, Question, Reading
from weblab_local.server.state import ServerState


class Answering:
    """One request on its way: what has come of its answers, each under its index."""

    ID_PREFIX: ClassVar[str]
    STREAM_OBJECT: ClassVar[str]

    def __init__(self, state: ServerState, questions: Sequence[Question]) -> None:
        self._state = state
        self._questions = questions
        self._chunks: list[list[Chunk]] = [[] for _ in questions]
        self._timed_out = False
        self._id = f"{self.ID_PREFIX}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def _events(self, *, progress: bool = False) -> AsyncGenerator[Piece | Reading, None]:
        """The engine's events, taken down on the way."""
        async with aclosing(self._state.answer(self._questions, progress=progress)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    self._chunks[event.index].append(event.chunk)
                    self._timed_out |= event.timed_out
                    if event.chunk.finish_reason is not None:
                        self._ended(complete(self._chunks[event.index]))
                yield event

    def _ended(self, answer: Completion) -> None:
        """Called with each answer that has ended."""

    async def _all(self) -> list[Completion]:
        """All answers, when the last has ended."""
        async with aclosing(self._events()) as events:
            async for _event in events:
                pass
        return self._answers

    @property
    def _answers(self) -> list[Completion]:
        return [complete(chunks) for chunks in self._chunks]

    def _stream_object(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": self.STREAM_OBJECT,
            "created": self._created,
            "model": self._state.model_id,
            "choices": choices,
            **more,
        }

    def _progress_object(self, reading: Reading) -> dict[str, Any]:
        return self._stream_object([], progress={"done": reading.done, "total": reading.total})
