"""How likely tokens are: log-probabilities from logits, and the scores of whole continuations."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from weblab_local.engine.generation import AsyncGeneration, Chunk, Generation, Stats, complete
from weblab_local.engine.request import Request
from weblab_local.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from weblab_local.engine.scheduler import Scheduler

G = TypeVar("G", Generation, AsyncGeneration)

GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Score:
    """How likely a continuation is after its context: a natural logarithm for each of its tokens.

    `is_greedy` says whether greedy decoding would go on with just these tokens.
    """

    logprobs: Sequence[float]
    is_greedy: bool
    stats: Stats = field(repr=False)

    @property
    def loglikelihood(self) -> float:
        """The logarithm of the whole continuation's probability."""
        return sum(self.logprobs)


def score_all(scheduler: "Scheduler", context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Score]:
    """The score of each of the `continuations`, all submitted at once; an exception on the way cancels the rest.

    None of them may be empty, and each has to fit the context's length together with `context`, its last token aside.
    """
    requests = [score_request(scheduler, context, continuation, Generation) for continuation in continuations]
    with ExitStack() as running:
        for request, generation in requests:
            running.enter_context(generation)
            scheduler.submit(request)
        return [_score(list(generation)) for _, generation in requests]


def score_request(
    scheduler: "Scheduler",
    context: Sequence[int],
    continuation: Sequence[int],
    make: Callable[[Callable[[], None]], G],
    n_top: int = 1,
) -> tuple[Request, G]:
    """Return a request to be submitted, and what its caller reads, which `make` makes of a function that cancels it."""
    request: Request
    generation = make(lambda: scheduler.cancel(request))
    request = Request(
        prompt=[*context, *continuation[:-1]],
        params=GREEDY,
        max_tokens=0,
        n_logprobs=n_top,
        emit=generation.emit,
        on_begin=generation.on_begin,
        continuation=continuation,
    )
    return request, generation


def _score(chunks: Sequence[Chunk]) -> Score:
    done = complete(chunks)
    return Score(
        logprobs=tuple(entry.logprob for entry in done.logprobs),
        is_greedy=all(entry.top[0][0] == entry.token_id for entry in done.logprobs),
        stats=done.stats,
    )
