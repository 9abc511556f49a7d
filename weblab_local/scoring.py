"""How likely tokens are: log-probabilities from logits, and the scores of whole continuations."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weblab_local.generation import Chunk, Generation, Stats, TokenLogprob, complete
from weblab_local.request import Request
from weblab_local.sampling import SamplingParams

if TYPE_CHECKING:
    from weblab_local.scheduler import Scheduler

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
    requests = [_request(scheduler, context, continuation) for continuation in continuations]
    with ExitStack() as running:
        for request, generation in requests:
            running.enter_context(generation)
            scheduler.submit(request)
        return [_score(list(generation)) for _, generation in requests]


def _request(scheduler: "Scheduler", context: Sequence[int], continuation: Sequence[int]) -> tuple[Request, Generation]:
    request: Request
    generation = Generation(lambda: scheduler.cancel(request))
    request = Request(
        prompt=[*context, *continuation[:-1]],
        params=GREEDY,
        max_tokens=0,
        stops=(),
        n_logprobs=1,
        emit=generation.emit,
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


def token_logprob(logits: NDArray[Any], token: int, n_top: int) -> TokenLogprob:
    """The log-probability of `token` by these `logits` (n_vocab), and the `n_top` likeliest tokens there."""
    wide = logits.astype(np.float64)
    logprobs = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    top = [int(logprobs.argmax())] if n_top == 1 else np.argsort(-logprobs, kind="stable")[:n_top].tolist()
    return TokenLogprob(token, float(logprobs[token]), tuple((t, float(logprobs[t])) for t in top))
