"""Log-probabilities of tokens, from logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weblab_local.engine.generation import TokenLogprob


def token_logprob(logits: NDArray[Any], token: int, n_top: int) -> TokenLogprob:
    """Return the log-probability of `token` by these `logits` (n_vocab), and the `n_top` likeliest tokens there."""
    wide = logits.astype(np.float64)
    logprobs = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    top = ((int(t), float(logprobs[t])) for t in _largest(logprobs, n_top))
    return TokenLogprob(token, float(logprobs[token]), tuple(top))


def _largest(values: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """The indices of the `n` largest values, the largest first; of equal ones the first.

    Only what is as large as the n-th is sorted: sorting all of a vocabulary takes longer than computing some tokens.
    """
    if n <= 1:
        return np.array([values.argmax()])[:n]
    if n >= len(values):
        return np.argsort(-values, kind="stable")
    least = np.partition(values, len(values) - n)[len(values) - n]
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")[:n]]
