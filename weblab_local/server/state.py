"""What all requests to a server share."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from weblab_local.engine import Engine
from weblab_local.i18n import _
from weblab_local.server.admission import Admission
from weblab_local.server.answers import Event, Question, answer
from weblab_local.server.config import ServerConfig
from weblab_local.server.conversation import AnswerMemory
from weblab_local.server.errors import ApiError

T = TypeVar("T")

PREPARED_AT_ONCE = 2
"""Requests whose text is read at the same time."""

DEFAULT_NAME = "default"
"""Stands for the loaded model in requests, beside its own name."""


@dataclass
class ServerState:
    """The engine, and what is counted and remembered beside it."""

    engine: Engine
    config: ServerConfig
    memory: AnswerMemory = field(default_factory=AnswerMemory)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.admission = Admission(self.engine.n_parallel, self.config.queue)
        self._preparing = asyncio.Semaphore(PREPARED_AT_ONCE)

    @property
    def model_id(self) -> str:
        """The model's name in requests and answers."""
        return self.engine.name

    def require_model(self, name: str | None) -> None:
        """Raise ApiError 404 for another model than the one that is loaded."""
        if name not in (None, self.model_id, DEFAULT_NAME):
            raise ApiError(
                404,
                _("The model loaded here is {name}. Name that one, or leave `model` out.").format(name=self.model_id),
                code="model_not_found",
                param="model",
            )

    async def prepare(self, n: int, work: Callable[[], T]) -> T:
        """What `work` makes of a request for `n` answers, in a thread: a long text takes a while to become ids.

        Raises ApiError 429 where there is no room for the answers, and what `work` raises.
        """
        with self.admission.admit(n):
            async with self._preparing:
                return await asyncio.to_thread(work)

    async def answer(self, questions: Sequence[Question], *, progress: bool = False) -> AsyncGenerator[Event, None]:
        """The events of all answers. Raises ApiError 429 before the first where there is no room."""
        with self.admission.admit(len(questions)):
            started = time.monotonic()
            async with aclosing(answer(self.engine, questions, self.config.timeout, progress=progress)) as events:
                async for event in events:
                    yield event
            self.admission.took(time.monotonic() - started)
