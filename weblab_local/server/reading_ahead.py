"""POST /v1/read_ahead: what is being typed on the page is computed while nobody wants anything.

Only the newest text counts. It is tokenized on a thread of its own, one at a time, and what came meanwhile but the last
is forgotten: however fast somebody types, requests for answers wait for one text at most.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from weblab_local.engine.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.machine.devices import on_battery
from weblab_local.server.conversation import Conversation, GeneratedIds
from weblab_local.server.errors import ApiError
from weblab_local.server.messages import MOST_MESSAGES, ChatMessage

logger = logging.getLogger(__name__)


class ReadAheadRequest(BaseModel):
    """A conversation whose last message is being typed; so far it may be empty.

    finished     nothing was typed for a moment: it is probably all
    max_tokens   of the answer that will be asked for, which decides what old messages are left out; None: no limit
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    finished: bool = False
    max_tokens: Annotated[int | None, Field(ge=1)] = None


class ReadingAhead:
    """Reads the newest text ahead. Any thread may call."""

    def __init__(self, engine: Engine, generated_ids: GeneratedIds, *, enabled: bool) -> None:
        self._engine = engine
        self._generated_ids = generated_ids
        self._enabled = enabled
        self._lock = threading.Lock()
        self._next: ReadAheadRequest | None = None
        self._thread = ThreadPoolExecutor(1, "weblab-local read ahead")

    @property
    def enabled(self) -> bool:
        """Whether anything is read ahead: not where it was turned off, nor while the machine runs on its battery."""
        return self._enabled and not on_battery()

    def begin(self) -> None:
        """Read what every conversation begins with."""
        self.take(ReadAheadRequest.model_validate({"messages": [{"role": "user", "content": ""}]}))

    def take(self, body: ReadAheadRequest) -> None:
        """Read this ahead soon, in place of all before; return at once."""
        with self._lock:
            waits, self._next = self._next is not None, body
        if not waits:
            self._thread.submit(self._logged)

    def _logged(self) -> None:
        """Read, and tell the log what nobody else would hear of."""
        try:
            self._read()
        except Exception as error:  # not its message, which may quote what is typed
            logger.error("reading ahead failed: %s", type(error).__name__)

    def _read(self) -> None:
        with self._lock:
            body, self._next = self._next, None
        if body is None or not self.enabled:
            return
        # What is no conversation yet, or does not fit, is told to whoever sends it; a closed engine reads nothing.
        with suppress(ApiError, WeblabError):
            conversation = Conversation(body.messages, body.max_tokens, self._engine, self._generated_ids)
            conversation.read_ahead(finished=body.finished)
