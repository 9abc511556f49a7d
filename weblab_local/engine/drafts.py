"""Drafts without a second model: what followed the same words before is guessed to follow again.

Speculative decoding by prompt lookup. What is guessed comes from the request's own text (its prompt, which has the
conversation, and its answer so far) and from earlier answers. A guess is computed in one batch with the token that is
there anyway. The sampler then chooses position by position as it would have without, and the guess is kept as far as it
agrees: a draft changes how many tokens a step gives, never which.

Almost never: llama.cpp computes one row and several rows of a matrix with different kernels for some types of weights,
so that logits may differ in their last bits, as they do beside other requests. Unless it is told otherwise, the engine
makes drafts only where nobody expects the same answer again: for requests that draw, without a seed.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from weblab_local.engine.draft_costs import MOST_TOKENS, Acceptance, BatchCosts
from weblab_local.engine.request import RunningRequest
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.suffix_index import SuffixIndex

Part = tuple[RunningRequest, Sequence[int]]
"""Tokens of a request that are computed in a step."""

MOST_GENERATING = 3
"""Requests that may generate beside each other while drafts are made: with more their own tokens fill the batch."""

LEAST_ODDS = 0.1
"""What is less probable than this to be kept is no part of a draft, whatever it costs."""

REMEMBERED = 16384
"""Tokens of earlier answers that are kept, at least; twice as many at most."""

END = -1
"""Stands behind each answer that is kept, so that no guess goes on in the next one."""


class Guess(NamedTuple):
    """What followed the last `length` tokens before."""

    length: int
    tokens: Sequence[int]


class Lookup:
    """The text of one request, and the guess that was made last."""

    def __init__(self) -> None:
        self.index = SuffixIndex()
        self.guess = Guess(0, ())
        self.acceptance = Acceptance()
        """How far to trust a guess is this text's own: what quotes and what is free are different."""

    def read(self, tokens: Sequence[int]) -> None:
        """Add what the text has got, and compare it with what was guessed, whether that was computed or not."""
        for n, (guessed, chosen) in enumerate(zip(self.guess.tokens, tokens, strict=False), self.guess.length):
            self.acceptance.note(n, guessed == chosen)
            if guessed != chosen:
                break
        self.index.extend(tokens)

    def odds(self) -> list[float]:
        """Return the probability of each guessed token that it and those before it come true."""
        odds, probability = [], 1.0
        for length in range(self.guess.length, self.guess.length + len(self.guess.tokens)):
            probability *= self.acceptance.of(length)
            if probability < LEAST_ODDS:
                break
            odds.append(probability)
        return odds


class Drafts:
    """Makes the drafts of an engine's requests. Only the scheduler's worker thread calls what is here."""

    def __init__(self, wanted: bool | None) -> None:
        """`wanted`: for all requests, for none, or (None) for those that draw without a seed."""
        self.costs = BatchCosts()
        self._wanted = wanted
        self._earlier = [SuffixIndex(), SuffixIndex()]
        """Answers that have ended: the index that grows, and the one that grew before."""
        self._lookups: WeakKeyDictionary[RunningRequest, Lookup] = WeakKeyDictionary()

    def _wanted_for(self, params: SamplingParams) -> bool:
        if self._wanted is None:
            return params.seed is None and not params.is_greedy
        return self._wanted

    def extend(self, parts: Sequence[Part], n_free: int) -> list[Part]:
        """Return the parts of a step in which all requests generate, with drafts of at most `n_free` tokens in all."""
        if len(parts) > MOST_GENERATING:
            return list(parts)
        lookups = [self._lookup(running) for running, _ in parts]
        odds = sorted(
            ((odd, number) for number, lookup in enumerate(lookups) if lookup is not None for odd in lookup.odds()),
            key=lambda pair: -pair[0],  # those of one request stay in their order
        )
        if not odds:
            return list(parts)
        n_drafted = self.costs.best_length(len(parts), [odd for odd, _ in odds[:n_free]])
        lengths = Counter(number for _, number in odds[:n_drafted])
        return [
            (running, tokens if lookup is None else (*tokens, *lookup.guess.tokens[: lengths[number]]))
            for number, ((running, tokens), lookup) in enumerate(zip(parts, lookups, strict=True))
        ]

    def _lookup(self, running: RunningRequest) -> Lookup | None:
        """The request's text with a guess for its next tokens, where it is to have drafts."""
        if not self._wanted_for(running.request.params):
            return None
        lookup = self._lookups.get(running)
        if lookup is None:
            lookup = self._lookups[running] = Lookup()
        text = lookup.index.tokens
        lookup.read([*running.sequence.tokens[len(text) :], *running.pending])
        lookup.guess = Guess(0, ())
        for index in (lookup.index, *self._earlier):
            match = index.match(text)
            if match is not None and match.length > lookup.guess.length:
                tokens = index.following(match.place, min(MOST_TOKENS, running.n_left) - 1)
                lookup.guess = Guess(match.length, tokens[: tokens.index(END)] if END in tokens else tokens)
        return lookup

    def remember(self, running: RunningRequest) -> None:
        """Keep the answer of a request that ends, which still has its sequence, for the guesses of later ones."""
        answer = running.sequence.tokens[len(running.request.prompt) :]
        if self._wanted is False or not answer:
            return
        self._earlier[0].extend([*answer, END])
        if len(self._earlier[0].tokens) > REMEMBERED:
            self._earlier = [SuffixIndex(), self._earlier[0]]
