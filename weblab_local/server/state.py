"""What all requests to a server share."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from weblab_local.engine.engine import Engine
from weblab_local.i18n import _
from weblab_local.llama.forks import Home
from weblab_local.server.admission import Admission, Places
from weblab_local.server.choices import Choice, ChoiceEvent, run_choices
from weblab_local.server.config import ServerConfig
from weblab_local.server.conversation import GeneratedIds
from weblab_local.server.errors import ApiError, printable, unsupported_parameter
from weblab_local.server.fields import MOST_NAMES, Body, unused_fields
from weblab_local.server.metrics import Metrics
from weblab_local.server.reading_ahead import ReadingAhead
from weblab_local.server.responses.stored import StoredResponses

T = TypeVar("T")

PREPARED_AT_ONCE = 2
"""Requests whose text is tokenized at the same time."""

DEFAULT_NAME = "default"
"""Stands for the loaded model in requests, beside its own name."""

_QUANTIZATION = re.compile(r"-(B?F\d+|I?Q\d\w*|W\d\w*)$")
"""At the end of a file's name, how its weights are stored."""


@dataclass
class ServerState:
    """The engine, and what is counted and remembered beside it."""

    engine: Engine
    config: ServerConfig
    generated_ids: GeneratedIds = field(default_factory=GeneratedIds)
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.responses = StoredResponses(self.config.responses)
        self.admission = Admission(self.engine.n_parallel, self.config.queue)
        self._preparing = ThreadPoolExecutor(PREPARED_AT_ONCE, "weblab-local prepare")
        self._home = Home()
        self.reading_ahead = ReadingAhead(self.engine, self.generated_ids, enabled=self.config.read_ahead)

    @property
    def model_id(self) -> str:
        """The model's name in requests and answers."""
        return self.engine.name

    @property
    def names(self) -> Sequence[str]:
        """The model's name, the same without its quantization, which stays when that changes, and the aliases."""
        stable = _QUANTIZATION.sub("", self.model_id)
        return tuple(dict.fromkeys([self.model_id, stable, *self.config.aliases]))

    @property
    def quantization(self) -> str:
        """How the weights are stored, as the file's name says it; "unknown" where it does not."""
        found = _QUANTIZATION.search(self.model_id)
        return found[1] if found else "unknown"

    def require_model(self, name: str | None) -> None:
        """Raise ApiError 404 for another model than the one that is loaded, unless any name is taken for it."""
        if name not in (None, DEFAULT_NAME, *self.names) and not self.config.any_model:
            raise ApiError(
                404,
                _("The model loaded here is {name}. Name that one, or leave `model` out.").format(name=self.model_id),
                code="model_not_found",
                param="model",
            )

    def ignored(self, body: Body) -> Sequence[str]:
        """Return the fields of a request that its answer does not depend on, each once, without positions in lists.

        Raises ApiError 400 for the first of them where the server is strict.
        """
        found: dict[str, None] = {}
        for place in unused_fields(body):
            if self.config.strict:
                raise unsupported_parameter(".".join(map(str, place)))
            found[printable(".".join(name for name in place if isinstance(name, str)))] = None
            if len(found) == MOST_NAMES:
                break
        return tuple(found)

    def metrics_text(self) -> str:
        """What was done so far and is being done, in Prometheus' text form."""
        n_computed = min(self.admission.n_taken, self.engine.n_parallel)
        n_waiting = self.admission.n_taken - n_computed
        return self.metrics.text(n_computed, n_waiting, self.engine.occupancy, self.engine.n_ctx)

    async def prepare(self, n: int, work: Callable[[], T]) -> tuple[T, Places]:
        """Return what `work` makes of a request for `n` choices, and the places they have from now on.

        It runs in a thread, since it can take a while. A thread cannot be interrupted: when the client leaves, the
        places stay taken until it has ended, so that clients who come and go do not pile up work. Raises ApiError 429
        where there is no room, ForkedError where the server was made in another process, and what `work` raises.
        """
        self._home.require()
        try:
            places = self.admission.admit(n)
        except ApiError:
            self.metrics.refused += 1
            raise
        loop = asyncio.get_running_loop()

        def ended(_future: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody counts any more
                loop.call_soon_threadsafe(places.release_all)

        future = self._preparing.submit(work)
        try:
            return await asyncio.wrap_future(future), places
        except BaseException:
            future.add_done_callback(ended)
            raise

    async def run(
        self, choices: Sequence[Choice], places: Places, generated: asyncio.Event, *, progress: bool = False
    ) -> AsyncGenerator[ChoiceEvent, None]:
        """Generate all choices, and yield their events.

        A choice gives its place back when it is generated, not when it is read; after the last `generated` is set.
        Raises ApiError 503 where within the server's time nothing came of an answer.
        """
        started = time.monotonic()
        with places:

            def on_generated() -> None:
                places.release_one()
                if places.n == 0 and not generated.is_set():
                    generated.set()
                    self.admission.took(time.monotonic() - started)

            async with aclosing(
                run_choices(self.engine, choices, self.config.timeout, progress=progress, on_generated=on_generated)
            ) as events:
                try:
                    async for event in events:
                        yield event
                except TimeoutError:
                    raise self.admission.come_again(
                        503,
                        _("Nothing came of the answer in {seconds:g} seconds: the server is busy.").format(
                            seconds=self.config.timeout
                        ),
                        code="no_answer_in_time",
                    ) from None
