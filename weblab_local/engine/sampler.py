"""Choosing the next token: llama.cpp's samplers in transformers' order, by SamplingParams.

A grammar, bias and penalties on the logits, then temperature, top-k, top-p, min-p, then a draw. The grammar comes first
in effect, not in work: llama.cpp takes microseconds for each token that it is asked about, and the vocabulary has
50,000. It is asked about the likeliest, and about the others only where too few of those are allowed.
"""

import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weblab_local.engine.sampling import MAX_SEED, MAX_TOP_K, SamplingParams
from weblab_local.errors import SamplingError
from weblab_local.i18n import _
from weblab_local.llama.sampler_chain import SamplerChain
from weblab_local.llama.token_prefixes import TokenPrefixes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weblab_local.engine.token_budget import TokenBudget
    from weblab_local.llama.context import Context

LEAST_TRIED, TRIED_TIMES = 64, 4
"""The grammar is first asked about so many of the likeliest tokens, or so many times those that top-k leaves."""


class Sampler:
    """The choice of one answer's tokens. Has to be closed; used by one thread."""

    def __init__(
        self,
        params: SamplingParams,
        vocab: Any,
        prompt: Sequence[int],
        n_ctx: int,
        prefixes: TokenPrefixes | None = None,
        budget: "TokenBudget | None" = None,
    ) -> None:
        """Build the chains. `prompt`'s tokens count for the repeat penalty. SamplingError for a grammar's errors.

        `prefixes` are the vocabulary's, where they are there already; only a grammar needs them. A grammar's answer
        with a `budget` comes to its end in it.
        """
        gbnf = params.gbnf()
        has_penalty = params.repeat_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)
        self._may_run_dry = bool(params.logit_bias)
        self._only_largest = params.is_greedy and gbnf is None and not has_penalty
        """The chain's choice is the largest logit, biases added: no candidates need to be listed for that."""
        self._bias = params.logit_bias
        self._n_wanted = 1 if params.is_greedy else params.top_k
        """So many of the likeliest allowed tokens are all that the choice looks at; 0: at all of them."""
        self._prefixes = prefixes
        self._budget = budget
        self._vocab = vocab
        self._chain = SamplerChain(vocab)
        self._grammar: SamplerChain | None = None
        self._logits: SamplerChain | None = None
        try:
            adjusting = self._chain
            if gbnf is not None:
                self._grammar = SamplerChain(vocab)
                self._grammar.add_grammar(gbnf)
                adjusting = self._logits = SamplerChain(vocab)
            if params.logit_bias:
                adjusting.add_bias(params.logit_bias)
            if params.repeat_penalty != 1:
                adjusting.add_penalties(n_ctx, repeat=params.repeat_penalty, seen=prompt)
            if params.presence_penalty or params.frequency_penalty:
                adjusting.add_penalties(n_ctx, frequency=params.frequency_penalty, presence=params.presence_penalty)
            self._add_choice(params)
        except BaseException:
            self.close()
            raise

    def _add_choice(self, params: SamplingParams) -> None:
        if params.is_greedy:
            self._chain.add_greedy()
            return
        self._chain.add_temperature(params.temperature)
        if params.top_k:
            self._chain.add_top_k(params.top_k)
        if params.top_p < 1:
            self._chain.add_top_p(params.top_p)
        if params.min_p:
            self._chain.add_min_p(params.min_p)
        self._chain.add_draw(secrets.randbelow(MAX_SEED) if params.seed is None else params.seed)

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here, as far as there is a budget to tell."""
        return self._budget is not None and self._budget.is_complete

    def sample(self, context: "Context", index: int, n_left: int) -> int:
        """Choose a token from the logits of `context`'s batch entry `index`, and take note of it for the next.

        It is the first of `n_left` that the answer may still have. Raises SamplingError when the grammar and logit_bias
        leave no token at all.
        """
        if self._only_largest:
            return self._largest(context.logits(index))
        if self._grammar is None and not self._may_run_dry:
            return self._chain.sample(context, index)
        array = self._applied(context.logits(index), n_left)
        chosen = array.data[array.selected]
        # llama.cpp would choose a forbidden token all the same, and a grammar that has to accept one ends the process.
        _require_allowed(chosen.logit)
        for chain in self._chains:
            chain.accept(chosen.id)
        if self._budget is not None:
            self._budget.take(chosen.id)
        return int(chosen.id)

    @property
    def _chains(self) -> list[SamplerChain]:
        return [chain for chain in (self._grammar, self._logits, self._chain) if chain is not None]

    def _applied(self, logits: "Sequence[float] | NDArray[np.float32]", n_left: int) -> Any:
        """What is left of all tokens with these logits, as llama.cpp's llama_token_data_array."""
        if self._grammar is None or self._logits is None:
            return self._chain.apply(logits)
        adjusted = self._logits.adjusted(logits)
        ids = self._allowed(self._grammar, adjusted)
        if not len(ids):
            raise _no_token_left()
        array = self._chain.apply(adjusted[ids], ids)
        if self._budget is None or self._budget.allows(array.data[array.selected].id, n_left):
            return array
        ids = self._that_end(self._grammar, adjusted, self._budget, n_left)
        return self._chain.apply(adjusted[ids], ids)

    def _that_end(
        self, grammar: SamplerChain, logits: "NDArray[np.float32]", budget: "TokenBudget", n_left: int
    ) -> "NDArray[np.int64]":
        """Of the likeliest tokens that the grammar allows those after which the answer can be ended in `n_left`.

        The next token of its shortest end is one of them.
        """
        likeliest = _likeliest(logits, min(LEAST_TRIED, len(logits) - 1))
        allowed = likeliest[_accepted(grammar, likeliest)]
        return np.array(sorted({budget.way_out(), *(token for token in allowed if budget.allows(token, n_left))}))

    def _allowed(self, grammar: SamplerChain, logits: "NDArray[np.float32]") -> "NDArray[np.int64]":
        """The tokens that the grammar allows; of many only the likeliest, where the choice looks at no others."""

        n_tried = max(LEAST_TRIED, TRIED_TIMES * self._n_wanted)
        if self._n_wanted and n_tried < len(logits):
            likeliest = _likeliest(logits, n_tried)
            allowed = likeliest[_accepted(grammar, likeliest)]
            if len(allowed) >= self._n_wanted:
                return allowed[: self._n_wanted]
        if self._prefixes is None:
            self._prefixes = TokenPrefixes(self._vocab)
        return self._prefixes.accepted(lambda ids: _accepted(grammar, ids))

    def _largest(self, logits: "NDArray[np.float32]") -> int:
        if self._bias:
            logits = logits.copy()
            for token, bias in self._bias.items():
                logits[token] += bias
        token = int(logits.argmax())
        _require_allowed(logits[token])
        return token

    def apply(self, logits: Sequence[float], n_left: int = MAX_TOP_K) -> dict[int, float]:
        """The tokens that are left for a draw from these logits (n_vocab), with their probabilities."""
        array = self._applied(logits, n_left)
        left = [array.data[i] for i in range(array.size)]
        peak = max(token.logit for token in left)
        weights = {int(token.id): math.exp(token.logit - peak) for token in left}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    def close(self) -> None:
        """Free the chains with their samplers."""
        for chain in self._chains:
            chain.close()


def _likeliest(logits: "NDArray[np.float32]", n: int) -> "NDArray[np.int64]":
    """The `n` tokens with the largest logits, these first; there are more than `n`."""
    likeliest = np.argpartition(-logits, n)[:n]
    return likeliest[np.argsort(-logits[likeliest], kind="stable")]


def _accepted(grammar: SamplerChain, ids: "NDArray[np.int64]") -> "NDArray[np.bool_]":
    return grammar.adjusted(np.zeros(len(ids), np.float32), ids) > -math.inf


def _require_allowed(logit: float) -> None:
    if logit == -math.inf:
        raise _no_token_left()


def _no_token_left() -> SamplingError:
    return SamplingError(_("No token is left: the grammar and logit_bias forbid all of them here."))
