"""A request on its way: what was asked, its place in the KV cache, and the answer as far as it has come."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weblab_local.generation import Chunk, Emit, FinishReason, Stats, TokenLogprob
from weblab_local.kv_cache import KvSequence
from weblab_local.sampling import Sampler, SamplingParams
from weblab_local.stopping import StopFilter
from weblab_local.tokenizer import TextStream

CHUNK_INTERVAL = 0.002
"""Seconds between two chunks of an answer, at least: a caller who is woken for every token of a tiny model takes the
processor from the threads that compute."""


@dataclass(eq=False)
class Request:
    """What a caller wants. `max_tokens` fits the context; `on_progress` gets (prompt tokens done, in all).

    With a `continuation`, nothing is generated, and its tokens get log-probabilities: `prompt` is then the context and
    all of the continuation but its last token.
    """

    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    stops: Sequence[str]
    n_logprobs: int | None
    emit: Emit
    on_progress: Callable[[int, int], None] | None = None
    continuation: Sequence[int] = ()
    submitted: float = field(default_factory=time.perf_counter)
    cancelled: bool = False

    @property
    def cells(self) -> int:
        """KV cells it may need."""
        return len(self.prompt) + self.max_tokens

    @property
    def first_logits(self) -> int:
        """The position in the prompt from which on logits are wanted: these tokens are computed, whatever is cached."""
        return len(self.prompt) - max(len(self.continuation), 1)


class Active:
    """A request that has a sequence: it reads its prompt, then generates."""

    def __init__(self, request: Request, sequence: KvSequence, cached: int, sampler: Sampler) -> None:
        self.request = request
        self.sequence = sequence
        self.cached = cached
        self.sampler = sampler
        self.pending: list[int] = []
        """Tokens chosen, but not yet in the KV cache."""
        self.waits_for: Active | None = None
        """Another request that is computing a prefix of this one's prompt."""
        self.text = TextStream()
        self.stop = StopFilter(request.stops)
        self.unsent_tokens: list[int] = []
        self.unsent_logprobs: list[TokenLogprob] = []
        self.unsent_text = ""
        self.last_sent = 0.0
        self.generated = 0
        self.started = time.perf_counter()
        self.first_token = 0.0

    @property
    def reading(self) -> bool:
        """Whether its prompt is still being read."""
        return not self.pending

    @property
    def unread(self) -> Sequence[int]:
        """The rest of the prompt."""
        return self.request.prompt[len(self.sequence.tokens) :]

    @property
    def shareable(self) -> Sequence[int]:
        """The part of the prompt that need not be computed where another sequence has it."""
        return self.request.prompt[: self.request.first_logits]

    def add(self, token: int, data: bytes, logprob: TokenLogprob | None) -> tuple[str, bool]:
        """Add a generated token, which stands for `data`: the text that can come out now, and whether it stops."""
        self.generated += 1
        self.pending = [token]
        self.unsent_tokens.append(token)
        if logprob is not None:
            self.unsent_logprobs.append(logprob)
        return self.stop.push(self.text.push(data))

    def rest(self) -> str:
        """What was held back and can come out at the answer's end."""
        text, stopped = self.stop.push(self.text.finish())
        return text + ("" if stopped else self.stop.finish())

    def send(self, text: str) -> None:
        """Give `text` and what was kept to the caller; only keep it if the last chunk is too fresh."""
        self.unsent_text += text
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
        )
