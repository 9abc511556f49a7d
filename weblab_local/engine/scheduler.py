"""Continuous batching: one worker thread, the only one that calls llama.cpp, serves all requests.

Every running request has a sequence in the shared KV cache, as long as there are cells for all (roster.py). Each step
decodes one batch: the newest token of every sequence that generates, and a chunk of the prompts that are still being
read. What another sequence has computed of a common prefix is shared, not computed again; what an earlier request left
in a sequence is used if it fits.
"""

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from weblab_local.engine.choosing import Choosing
from weblab_local.engine.drafts import Drafts, Part
from weblab_local.engine.generation import Chunk, FinishReason, Stats
from weblab_local.engine.kv_cache import KvCache, KvSequence, common_prefix
from weblab_local.engine.pacing import Pacing
from weblab_local.engine.request import Request, RunningRequest
from weblab_local.engine.roster import Occupancy, Roster
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.users import closed_error
from weblab_local.errors import ForkedError, WeblabError
from weblab_local.i18n import _
from weblab_local.llama import forks
from weblab_local.llama.context import BatchToken, Context, Model

logger = logging.getLogger(__name__)

EXIT_SECONDS = 5.0
"""How long the end of the program waits for a worker thread; one that is in a caller's callback may never end."""

LOOK_AGAIN_SECONDS = 60.0
"""How long the thread waits for work at most. A garbage collection on this very thread may let go of the engine between
its look and its waiting, and nobody would wake it."""

T = TypeVar("T")

_schedulers: "WeakSet[Scheduler]" = WeakSet()


@atexit.register
def _end_all() -> None:
    """End the worker threads of engines that nobody closed.

    One that was still in llama.cpp while the process is taken apart would crash it.
    """
    for scheduler in list(_schedulers):
        scheduler.close(EXIT_SECONDS)


class Scheduler:
    """Owns the context and its worker thread. `submit` and `cancel` may be called from any thread."""

    def __init__(
        self, model: Model, context: Context, n_ctx: int, n_parallel: int, n_batch: int, can_abort: bool, drafts: Drafts
    ) -> None:
        self._model = model
        self._context = context
        self._cache = KvCache(context, n_ctx=n_ctx, n_parallel=n_parallel)
        self._roster = Roster(self._cache, n_batch, Pacing(can_abort=can_abort), drafts)
        self._choosing = Choosing(model, context, self._cache, n_ctx)
        self._running = self._roster.running
        self._waiting: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = forks.Condition()
        self.is_here = self._changed.is_here
        """Whether the worker thread is in this process, and not in one that this was forked from."""
        self._computing: set[Request] = set()
        """What has tokens in the batch that is being decoded."""
        self._ahead: Request | None = None
        """What reads ahead, or was the last to, if nothing was asked for since."""
        self._closed = self._abandoned = self._ended = False
        _schedulers.add(self)
        self._thread = threading.Thread(target=self._run, name="weblab-local engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; its events come through `request.emit`. Raises WeblabError when closed."""
        with self._changed:
            if self._closed:
                raise closed_error()
            self._stop_reading_ahead(request)
            self._waiting.append(request)
            self._changed.notify()

    def read_ahead(self, prompt: Sequence[int]) -> None:
        """Read a prompt ahead, in place of the one before; not while anybody wants anything."""
        request = Request(prompt, SamplingParams(), max_tokens=0, reads_ahead=True)
        with self._changed:
            if self._closed or (self._ahead is not None and list(self._ahead.prompt) == list(prompt)):
                return
            self._stop_reading_ahead(request)
            others = [*self._waiting, *(running.request for running in [*self._running, *self._roster.preempted])]
            if not all(other.reads_ahead for other in others):
                return
            self._ahead = request
            self._waiting.append(request)
            self._changed.notify()

    def _stop_reading_ahead(self, next_one: Request | None = None) -> None:
        """End what reads ahead, at once.

        Where all that it reads is the beginning of the next request, that goes on with what the step has which is being
        computed. So there is one at most, however fast somebody types and however slow the machine is.
        """
        aheads = {request for request in self._computing if request.reads_ahead}
        if self._ahead is not None:
            aheads.add(self._ahead)
        self._ahead = None
        for ahead in aheads:
            if next_one is not None and common_prefix(ahead.prompt, next_one.prompt) == len(ahead.prompt):
                ahead.cancelled = True
            else:
                self.cancel(ahead)

    def cancel(self, request: Request) -> None:
        """End a request soon: at once where the batch that is being decoded is of nobody else, else after it.

        Aborting would throw away the tokens of the others in the batch; clients that come and go could keep them from
        ever getting one.
        """
        if not self.is_here():
            return
        with self._changed:
            request.cancelled = True
            if request in self._computing and all(other.cancelled for other in self._computing):
                self._context.abort()
            self._changed.notify()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the worker thread between two steps; its result, or its exception."""
        self.refuse_worker(_("on_progress cannot call the engine and wait for it: it runs on the engine's own thread."))
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise closed_error()
            self._calls.append((function, future))
            self._changed.notify()
        return future.result()

    def scale_adapters(self, scales: Sequence[float]) -> None:
        """Compute with the model's adapters at these scales, and forget all that was computed with others.

        What reads ahead ends for it. Raises WeblabError while an answer is computed, half of it with other scales.
        """

        def change() -> None:
            with self._changed:
                self._stop_reading_ahead()
            self._drop_cancelled()
            if self._running or self._roster.preempted:
                raise WeblabError(
                    _("An answer is being computed with the adapters as they are."),
                    _("Change them when it has ended, or cancel it."),
                )
            self._model.adapters = [
                (handle, scale) for (handle, _scale), scale in zip(self._model.adapters, scales, strict=True)
            ]
            self._context.set_adapters(*zip(*self._model.adapters, strict=True))
            self._cache.clear()

        self.call(change)

    def save_prefix(self, ids: Sequence[int], path: Path) -> int:
        """How many of `ids` an idle sequence has in its KV cells; their state is written to `path`, if it has any."""
        return self.call(lambda: self._cache.save(ids, path))

    def restore_prefix(self, ids: Sequence[int], state: bytes | memoryview) -> bool:
        """Put a state that `save_prefix` wrote back into the KV cache, if an idle sequence and room are there."""
        return self.call(lambda: self._cache.restore(ids, state))

    @property
    def occupancy(self) -> Occupancy:
        """How full the engine is now."""
        return self._roster.occupancy

    def refuse_worker(self, message: str) -> None:
        """Raise WeblabError with `message` on the worker thread, where a callback would wait for itself."""
        if threading.current_thread() is self._thread:
            raise WeblabError(message)

    def close(self, seconds: float | None = None) -> None:
        """End all requests with an error, and the thread. The context is the caller's to close.

        With `seconds` it waits no longer than that for the thread.
        """
        if self.is_here():
            self._stop()
            self._thread.join(seconds)

    def abandon(self) -> None:
        """End as `close` does, without waiting: the thread frees context and model when it is done with them.

        For an engine that nobody has any more. Its last owner may let go of it on any thread, the worker's included.
        """
        if self.is_here() and self._stop(abandoned=True):
            self._free()

    def _stop(self, *, abandoned: bool = False) -> bool:
        """Let the thread end soon; whether it has ended already."""
        with self._changed:
            self._abandoned |= abandoned
            self._closed = True
            if self._computing:
                self._context.abort()
            self._changed.notify()
            return self._ended

    def _free(self) -> None:
        self._context.close()
        self._model.close()

    def _run(self) -> None:
        self._work()
        with self._changed:
            self._ended = True
            abandoned = self._abandoned
        if abandoned:
            self._free()

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except ForkedError:  # `on_progress` forked and came back in the child, where OpenMP would wait for its threads
            os._exit(1)
        except BaseException as error:
            logger.exception("The engine's worker thread failed.")
            self._fail_everything(
                WeblabError(
                    _("The engine failed: {error}").format(error=error), _("Close it and load the model again.")
                )
            )
        else:
            self._fail_everything(closed_error())

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._changed.wait_for(self._has_work, LOOK_AGAIN_SECONDS):
                pass
            return not self._closed

    def _has_work(self) -> bool:
        return bool(self._closed or self._running or self._roster.preempted or self._waiting or self._calls)

    def _fail_everything(self, error: WeblabError) -> None:
        with self._changed:
            self._closed = True
            waiting, calls = list(self._waiting), list(self._calls)
            self._waiting.clear()
            self._calls.clear()
        for running in [*self._running, *self._roster.preempted]:
            self._end(running, error)
        for request in waiting:
            request.emit(error)
        for _function, future in calls:
            future.set_exception(error)

    def _step(self) -> None:
        self._answer_calls()
        self._drop_cancelled()
        self._roster.resume()
        self._admit()
        self._roster.share_prefixes()
        parts = self._roster.plan_batch()
        if not parts:
            return
        batch: list[BatchToken] = []
        first_index: list[int] = []
        for running, tokens in parts:
            first_index.append(len(batch))
            batch += running.batch_tokens(tokens)
        if not self._decode(parts, batch):
            return
        for (running, tokens), first in zip(parts, first_index, strict=True):
            self._advance(running, tokens, first)

    def _answer_calls(self) -> None:
        with self._changed:
            calls = list(self._calls)
            self._calls.clear()
        for function, future in calls:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [request for request in self._waiting if request.cancelled]
            for request in dropped:
                self._waiting.remove(request)
        for request in dropped:
            n_prompt = len(request.prompt)
            request.emit(Chunk("", (), finish_reason="cancelled", stats=Stats(n_prompt, 0, 0, 0.0, 0.0, 0.0)))
        for running in [*self._running, *self._roster.preempted]:
            if running.request.cancelled:
                self._finish(running, "cancelled")

    def _admit(self) -> None:
        """Give waiting requests, in their order, a sequence and room, as long as there are both."""
        while True:
            with self._changed:
                request = self._waiting[0] if self._waiting else None
            if request is None or not self._roster.fits(request):
                return
            sequence = self._cache.take(request.prompt, request.first_output)
            if sequence is None:
                return
            with self._changed:
                self._waiting.popleft()  # nobody else takes any out
            self._begin(request, sequence)

    def _begin(self, request: Request, sequence: KvSequence) -> None:
        try:
            sampler = self._choosing.sampler(request)
        except Exception as error:  # the request's own: one that went further would end all others
            self._cache.release(sequence)
            request.emit(error)
            return
        self._roster.add(RunningRequest(request, sequence, len(sequence.tokens), sampler))
        request.on_begin()

    def _decode(self, parts: Sequence[Part], batch: Sequence[BatchToken]) -> bool:
        """Compute the batch; False when it was aborted or failed, and nothing of it is kept."""
        with self._changed:
            if self._closed:
                return False
            computing = {running.request for running, _ in parts}
            if any(request.cancelled for request in computing):
                return False
            self._computing = computing
        error: WeblabError | None = None
        started = time.perf_counter()
        try:
            done = self._context.decode(batch)
        except WeblabError as raised:
            done, error = False, raised
        with self._changed:
            self._computing = set()
            self._context.clear_abort()
        if done:
            self._roster.computed(parts, time.perf_counter() - started)
        if not done:
            for running, _tokens in parts:
                self._context.forget(running.sequence.index, len(running.sequence.tokens))
                if error is not None:
                    self._end(running, error)
        return done

    def _advance(self, running: RunningRequest, tokens: Sequence[int], first: int) -> None:
        """Take note of computed tokens and, where the logits are there, choose the next."""
        try:
            if not running.in_prefill:
                self._go_on(running, self._choosing.choose(running, first, tokens))
                return
            self._cache.append(running.sequence, tokens)
            if running.pending:  # it goes on after a preemption: what it has read again, it wrote before
                return
            if running.request.on_progress is not None:
                running.request.on_progress(len(running.sequence.tokens), len(running.request.prompt))
            if running.request.continuation:
                running.score(tokens, first, self._context.logits)
            if running.in_prefill:
                return
            running.first_token = time.perf_counter()
            if running.request.reads_ahead or running.request.continuation:
                self._finish(running, "stop")
            else:
                self._go_on(running, self._choosing.choose(running, first + len(tokens) - 1))
        except BaseException as error:  # a callback of the caller's, or a grammar that nothing fits
            self._end(running, error)

    def _go_on(self, running: RunningRequest, reason: FinishReason | None) -> None:
        if reason is not None:
            self._finish(running, reason)

    def _finish(self, running: RunningRequest, reason: FinishReason) -> None:
        """The answer's end, with what was held back."""
        self._end(running, running.take_unsent(running.rest(), reason))

    def _end(self, running: RunningRequest, event: Chunk | BaseException) -> None:
        running.sampler.close()
        self._roster.remove(running)
        running.request.emit(event)
