"""Continuous batching: one worker thread, the only one that calls llama.cpp, serves all requests.

Every active request has a sequence in the shared KV cache. Each step decodes one batch: the newest token of every
sequence that generates, and a chunk of the prompts that are still being read. What another sequence has computed of a
common prefix is shared, not computed again; what an earlier request left in a sequence is used if it fits.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakSet

from weblab_local.context import Context, Entry, Model
from weblab_local.errors import WeblabError
from weblab_local.generation import Chunk, FinishReason, Stats
from weblab_local.i18n import _
from weblab_local.kv_cache import KvCache, KvSequence, common_prefix
from weblab_local.request import Active, Request
from weblab_local.sampling import Sampler
from weblab_local.scoring import token_logprob

logger = logging.getLogger(__name__)

MIXED_SECONDS, LEAST_CHUNK = 0.3, 8
"""While others generate, a prompt is read in chunks that take about so long, of at least so many tokens: the others
wait for no more than that between two of their tokens."""

EXIT_SECONDS = 5.0
"""How long the end of the program waits for a worker thread; one that is in a caller's callback may never end."""

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

    def __init__(self, model: Model, context: Context, *, n_ctx: int, n_parallel: int, n_batch: int) -> None:
        self._model = model
        self._context = context
        self._n_ctx = n_ctx
        self._n_batch = n_batch
        self._cache = KvCache(context, n_ctx=n_ctx, n_parallel=n_parallel)
        self._active: list[Active] = []
        self._waiting: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._reading_now: set[Request] = set()
        self._reading_speed = 0.0
        """Tokens per second in the last batch that read a prompt."""
        self._closed = False
        _schedulers.add(self)
        self._thread = threading.Thread(target=self._run, name="weblab-local engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; its events come through `request.emit`. Raises WeblabError when closed."""
        with self._changed:
            if self._closed:
                raise closed_error()
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """End a request soon: at once while its prompt is being read, else at its next token."""
        with self._changed:
            request.cancelled = True
            if request in self._reading_now:
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

    def save_prefix(self, ids: Sequence[int]) -> tuple[int, bytes]:
        """How many of `ids` an idle sequence has in its KV cells, and their state; (0, b"") when none has any."""
        return self.call(lambda: self._cache.save(ids))

    def restore_prefix(self, ids: Sequence[int], state: bytes) -> bool:
        """Put a state from `save_prefix` back into the KV cache, if an idle sequence and room are there."""
        return self.call(lambda: self._cache.restore(ids, state))

    def refuse_worker(self, message: str) -> None:
        """Raise WeblabError with `message` on the worker thread, where a callback would wait for itself."""
        if threading.current_thread() is self._thread:
            raise WeblabError(message)

    def close(self, seconds: float | None = None) -> None:
        """End all requests with an error, and the thread. The context is the caller's to close.

        With `seconds` it waits no longer than that for the thread.
        """
        with self._changed:
            self._closed = True
            if self._reading_now:
                self._context.abort()
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
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
            self._changed.wait_for(lambda: self._closed or self._active or self._waiting or self._calls)
            return not self._closed

    def _fail_everything(self, error: WeblabError) -> None:
        with self._changed:
            self._closed = True
            waiting, calls = list(self._waiting), list(self._calls)
            self._waiting.clear()
            self._calls.clear()
        for active in list(self._active):
            self._end(active, error)
        for request in waiting:
            request.emit(error)
        for _function, future in calls:
            future.set_exception(error)

    def _step(self) -> None:
        self._answer_calls()
        self._drop_cancelled()
        self._admit()
        self._share_prefixes()
        parts = self._plan_batch()
        if not parts:
            return
        entries: list[Entry] = []
        first_entry: list[int] = []
        for active, tokens in parts:
            first_entry.append(len(entries))
            entries += self._entries(active, tokens)
        if not self._decode(parts, entries):
            return
        for (active, tokens), first in zip(parts, first_entry, strict=True):
            self._advance(active, tokens, first)

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
        for active in [active for active in self._active if active.request.cancelled]:
            self._finish(active, "cancelled")

    def _admit(self) -> None:
        """Give waiting requests, in their order, a sequence and room, as long as there are both."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                request = self._waiting[0]
                sequence = self._cache.take(request.prompt, request.cells, request.first_logits)
                if sequence is None:
                    return
                self._waiting.popleft()
            self._begin(request, sequence)

    def _begin(self, request: Request, sequence: KvSequence) -> None:
        try:
            sampler = Sampler(request.params, self._model.vocab, request.prompt, self._n_ctx)
        except Exception as error:  # the request's own: one that went further would end all others
            self._cache.release(sequence)
            request.emit(error)
            return
        active = Active(request, sequence, len(sequence.tokens), sampler)
        active.waits_for = self._ahead_of(active)
        self._active.append(active)

    def _ahead_of(self, active: Active) -> Active | None:
        """The earlier request that is about to compute the longest prefix of this one's prompt beyond what it has."""
        best, most = None, len(active.sequence.tokens)
        for other in self._active:
            if other is active:
                break
            if other.reading:
                length = common_prefix(other.request.prompt, active.shareable)
                if length > most:
                    best, most = other, length
        return best

    def _share_prefixes(self) -> None:
        """Give requests that wait for another's prefix what it has computed, once it has all of it or has ended."""
        for active in self._active:
            other = active.waits_for
            if other is None:
                continue
            wanted = common_prefix(other.request.prompt, active.shareable)
            there = common_prefix(other.sequence.tokens, active.shareable)
            if there >= wanted or other not in self._active:
                if there > len(active.sequence.tokens):
                    self._cache.share(other.sequence, active.sequence, there)
                    active.cached = there
                active.waits_for = self._ahead_of(active) if there < wanted else None

    def _plan_batch(self) -> list[tuple[Active, Sequence[int]]]:
        """Which tokens of which request are computed next: all that generate, then prompts, oldest first."""
        parts: list[tuple[Active, Sequence[int]]] = [(a, tuple(a.pending)) for a in self._active if not a.reading]
        room = self._n_batch - sum(len(tokens) for _, tokens in parts)
        if parts:
            room = min(room, max(LEAST_CHUNK, int(MIXED_SECONDS * self._reading_speed)))
        for active in self._active:
            if active.reading and active.waits_for is None and room > 0:
                tokens = active.unread[:room]
                parts.append((active, tokens))
                room -= len(tokens)
        return parts

    def _entries(self, active: Active, tokens: Sequence[int]) -> list[Entry]:
        start = len(active.sequence.tokens)
        first = active.request.first_logits
        return [
            Entry(token, position, active.sequence.index, logits=position >= first)
            for position, token in enumerate(tokens, start)
        ]

    def _decode(self, parts: Sequence[tuple[Active, Sequence[int]]], entries: Sequence[Entry]) -> bool:
        """Compute the batch; False when it was aborted or failed, and nothing of it is kept."""
        with self._changed:
            if self._closed:
                return False
            self._reading_now = {active.request for active, _ in parts if active.reading}
            if any(request.cancelled for request in self._reading_now):
                self._reading_now = set()
                return False
        error: WeblabError | None = None
        started = time.perf_counter()
        try:
            done = self._context.decode(entries)
        except WeblabError as raised:
            done, error = False, raised
        with self._changed:
            self._reading_now = set()
            self._context.clear_abort()
        if done and len(entries) >= LEAST_CHUNK:
            self._reading_speed = len(entries) / (time.perf_counter() - started)
        if not done:
            for active, _tokens in parts:
                self._context.forget(active.sequence.index, len(active.sequence.tokens))
                if error is not None:
                    self._end(active, error)
        return done

    def _advance(self, active: Active, tokens: Sequence[int], first: int) -> None:
        """Take note of computed tokens and, where the logits are there, choose the next."""
        was_reading = active.reading
        try:
            active.sequence.tokens.extend(tokens)
            if was_reading:
                if active.request.on_progress is not None:
                    active.request.on_progress(len(active.sequence.tokens), len(active.request.prompt))
                if active.request.continuation:
                    self._score(active, tokens, first)
                    return
                if active.unread:
                    return
                active.first_token = time.perf_counter()
            index = first + len(tokens) - 1
            self._take(active, active.sampler.sample(self._context, index), index)
        except BaseException as error:  # a callback of the caller's, or a grammar that nothing fits
            self._end(active, error)

    def _score(self, active: Active, tokens: Sequence[int], first: int) -> None:
        """Take note of how likely what follows each of these `tokens` is, where that is of the continuation."""
        request = active.request
        start = len(active.sequence.tokens) - len(tokens)
        for i in range(max(request.first_logits - start, 0), len(tokens)):
            follows = request.continuation[start + i - request.first_logits]
            active.unsent_logprobs.append(token_logprob(self._context.logits(first + i), follows, 1))
        if not active.unread:
            active.first_token = time.perf_counter()
            self._finish(active, "stop")

    def _take(self, active: Active, token: int, index: int) -> None:
        """Add a generated token to the answer, send what can be sent, end the answer where it ends."""
        request = active.request
        if self._model.is_end(token):
            self._finish(active, "stop")
            return
        n_top = request.n_logprobs
        logprob = None if n_top is None else token_logprob(self._context.logits(index), token, n_top)
        text, stopped = active.add(token, self._model.piece(token), logprob)
        if stopped:
            self._finish(active, "stop", text)
        elif active.generated >= request.max_tokens:
            self._finish(active, "length", text)
        elif text:
            active.send(text)

    def _finish(self, active: Active, reason: FinishReason, text: str | None = None) -> None:
        """The answer's end. `text` is what comes out after a stop string or the last token; None: nothing held back."""
        if text is None or reason == "length":
            text = (text or "") + active.rest()
        self._end(active, active.take_unsent(text, reason))

    def _end(self, active: Active, event: Chunk | BaseException) -> None:
        active.sampler.close()
        self._cache.release(active.sequence)
        self._active.remove(active)
        active.request.emit(event)


def closed_error() -> WeblabError:
    """What a caller gets from an engine that was closed."""
    return WeblabError(_("The model was closed."), _("Load it again with weblab_local.load()."))
