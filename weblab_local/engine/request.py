"""A request on its way: what was asked, its place in the KV cache, and the answer as far as it has come."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weblab_local.engine.generation import Chunk, Emit, FinishReason, Stats, TokenLogprob
from weblab_local.engine.kv_cache import KvSequence
from weblab_local.engine.logprobs import token_logprob
from weblab_local.engine.sampler import Sampler
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.stopping import StopFilter
from weblab_local.engine.token_budget import TokenBudget
from weblab_local.llama.context import BatchToken
from weblab_local.llama.tokenizer import TextStream

CHUNK_INTERVAL = 0.002
"""Seconds between two chunks of an answer, at least: a caller who is woken for every token of a tiny model takes the
processor from the threads that compute."""


@dataclass(eq=False)
class Request:
    """What a caller wants. `max_tokens` fits the context; `on_progress` gets (prompt tokens done, in all).

    With a `budget` the answer is brought to its end within `max_tokens`.

    `stop_ids` are of stop strings that are special tokens, which have no text that could be compared.

    `on_begin` is called on the worker thread when it has a sequence and room: from then on it is computed. One that
    `reads_ahead` computes its prompt for a later request, as long as nobody else wants anything.

    With a `continuation`, nothing is generated, and its tokens get log-probabilities: `prompt` is then the context and
    all of the continuation but its last token.
    """

    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    stops: Sequence[str] = ()
    stop_ids: Collection[int] = ()
    n_logprobs: int | None = None
    budget: TokenBudget | None = None
    emit: Emit = field(default=lambda _event: None)
    on_progress: Callable[[int, int], None] | None = None
    continuation: Sequence[int] = ()
    on_begin: Callable[[], None] = lambda: None
    reads_ahead: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    cancelled: bool = False

    @property
    def first_output(self) -> int:
        """The position in the prompt from which on logits are wanted: these tokens are computed, whatever is cached."""
        return len(self.prompt) - max(len(self.continuation), 1)

    @property
    def reusable(self) -> Sequence[int]:
        """The part of the prompt that need not be computed where the cache has it."""
        return self.prompt[: self.first_output]


class RunningRequest:
    """A request that has a sequence: it reads its prompt, then generates."""

    def __init__(self, request: Request, sequence: KvSequence, cached: int, sampler: Sampler) -> None:
        self.request = request
        self.sequence = sequence
        self.to_read: Sequence[int] = request.prompt
        """What has to be in the cache before it can generate: its prompt, and after a preemption what it wrote too."""
        self.n_preempted = 0
        self.cached = cached
        self.sampler = sampler
        self.pending: list[int] = []
        """Tokens chosen, but not yet in the KV cache."""
        self.waits_for: RunningRequest | None = None
        """Another request that is computing a prefix of this one's prompt."""
        self.text = TextStream()
        self.stop = StopFilter(request.stops)
        self.unsent_tokens: list[int] = []
        self.unsent_logprobs: list[TokenLogprob] = []
        self.unsent_text = ""
        self.stopped = False
        """Whether a stop string was found; nothing may come out behind it."""
        self.last_sent = 0.0
        self.generated = 0
        self.drafted = self.accepted = 0
        """Tokens that were guessed and computed with others, and how many of them were chosen."""
        self.started = time.perf_counter()
        self.first_token = 0.0

    @property
    def in_prefill(self) -> bool:
        """Whether tokens have to be read before it can generate, or go on to."""
        return self.n_to_read > 0

    @property
    def n_to_read(self) -> int:
        """How many of them there are."""
        return max(len(self.to_read) - len(self.sequence.tokens), 0)

    def next_to_read(self, n: int) -> Sequence[int]:
        """The next `n` of them."""
        start = len(self.sequence.tokens)
        return self.to_read[start : start + n]

    @property
    def shareable(self) -> Sequence[int]:
        """The part of what it reads that need not be computed where another sequence has it."""
        return self.to_read if self.pending else self.request.reusable

    @property
    def n_left(self) -> int:
        """Tokens that it may still write."""
        return self.request.max_tokens - self.generated

    def preempt(self) -> None:
        """Take note that it gives its sequence up: what it will have to read again, when it has another."""
        self.n_preempted += 1
        self.waits_for = None
        if self.pending and not self.in_prefill:
            self.to_read = tuple(self.sequence.tokens)
        if self.request.continuation:
            self.unsent_logprobs = []

    def batch_tokens(self, tokens: Sequence[int]) -> list[BatchToken]:
        """Return the next `tokens` of its sequence as entries of a batch."""
        first = len(self.to_read) if self.pending else self.request.first_output
        return [
            BatchToken(token, position, self.sequence.index, logits=position >= first)
            for position, token in enumerate(tokens, len(self.sequence.tokens))
        ]

    def add(self, token: int, data: bytes, logprob: TokenLogprob | None) -> FinishReason | None:
        """Add a generated token, which stands for `data`; why the answer ends with it, if it does."""
        self.generated += 1
        self.pending = [token]
        self.unsent_tokens.append(token)
        if logprob is not None:
            self.unsent_logprobs.append(logprob)
        text, self.stopped = self.stop.push(self.text.push(data))
        self.unsent_text += text
        if self.stopped:
            return "stop"
        if self.n_left > 0:
            return None
        return "stop" if self.sampler.is_complete else "length"

    def score(self, tokens: Sequence[int], first: int, logits: Callable[[int], NDArray[np.float32]]) -> None:
        """Take note of how likely what follows each of these computed `tokens` is, where that is of the continuation.

        Their logits begin at `logits(first)`.
        """
        n_top, start = self.request.n_logprobs or 0, len(self.sequence.tokens) - len(tokens)
        for i in range(max(self.request.first_output - start, 0), len(tokens)):
            follows = self.request.continuation[start + i - self.request.first_output]
            self.unsent_logprobs.append(token_logprob(logits(first + i), follows, n_top))

    def rest(self) -> str:
        """What was held back and can come out at the answer's end."""
        if self.stopped:
            return ""
        text, stopped = self.stop.push(self.text.finish())
        return text + ("" if stopped else self.stop.finish())

    def send(self) -> None:
        """Give the text that was kept to the caller; keep it if the last chunk is too fresh."""
        now = time.perf_counter()
        if now - self.last_sent >= CHUNK_INTERVAL:
            self.last_sent = now
            self.request.emit(self.take_unsent(""))

    def take_unsent(self, text: str, reason: FinishReason | None = None) -> Chunk:
        """All that was kept, followed by `text`, as a chunk."""
        stats = self.stats() if reason is not None else None
        chunk = Chunk(self.unsent_text + text, tuple(self.unsent_tokens), tuple(self.unsent_logprobs), reason, stats)
        self.unsent_text, self.unsent_tokens, self.unsent_logprobs = "", [], []
        return chunk

    def stats(self) -> Stats:
        """Counts and times so far."""
        now = time.perf_counter()
        first = self.first_token or now
        return Stats(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached,
            completion_tokens=self.generated,
            prompt_seconds=first - self.started,
            generation_seconds=now - first,
            time_to_first_token=first - self.request.submitted,
            preempted=self.n_preempted,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )
