"""How far a model's next-token distributions are from the reference's: KL divergence, agreement, perplexity ratio.

For each position, P is the reference's distribution of the next token and Q the model's:

    KL(P || Q) = sum over tokens of P (log P - log Q)         in nats, 0 when they are equal
    change of the correct token's probability = Q(next) - P(next)
    perplexity ratio = exp(mean of (log P(next) - log Q(next)))

The names and the definitions are those of llama.cpp's tool llama-perplexity (`--kl-divergence`).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Divergence:
    """A text, position by position. `kl` and `agrees` have one value for each of its n tokens.

    `correct_change` and `log_ratio` have n - 1: nothing is known of what follows the last token. `log_correct` (n - 1)
    is the reference's log-probability of the token that comes next.
    """

    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    correct_change: NDArray[np.float64]
    log_ratio: NDArray[np.float64]
    log_correct: NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Divergences of some texts together. KL in nats, the rest as shares or ratios.

    `perplexity_ratio_error` is the standard error of the ratio: the ratio times that of the mean log ratio, with the
    positions taken as independent. `perplexity` is the reference's.
    """

    n_tokens: int
    mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    mean_correct_change: float
    rms_correct_change: float
    perplexity: float
    perplexity_ratio: float
    perplexity_ratio_error: float

    def as_dict(self) -> dict[str, float | int]:
        """The figures by name."""
        return asdict(self)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Log-probabilities over the last axis, float32. Log-probabilities given as logits are normalized again."""
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


def compare(reference: NDArray[Any], logits: NDArray[np.float32], next_ids: Sequence[int], n_vocab: int) -> Divergence:
    """Compare log-probabilities of the `reference` (n, at least n_vocab) with a model's `logits` of the same shape.

    `next_ids` are the tokens that follow, n of them or, where the text ends, n - 1. Only the first `n_vocab` entries
    count: what pads a vocabulary is no token. The reference is normalized after it was rounded to fp16, so that it is
    a distribution: KL is then never negative, and the rounding adds about 1e-6 to it.
    """
    log_p = log_softmax(reference[:, :n_vocab])
    log_q = log_softmax(logits[:, :n_vocab])
    agrees = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    following = np.asarray(next_ids, dtype=np.intp)
    rows = np.arange(len(following))
    p_next = log_p[rows, following].astype(np.float64)
    q_next = log_q[rows, following].astype(np.float64)
    p = np.exp(log_p)
    log_p -= log_q
    # A token that the reference excludes (-inf) adds nothing, whatever the model thinks of it.
    log_p[p == 0.0] = 0.0
    kl = np.einsum("ij,ij->i", p, log_p, dtype=np.float64)
    return Divergence(
        kl=np.where(kl < 0.0, 0.0, kl),
        agrees=agrees,
        correct_change=np.exp(q_next) - np.exp(p_next),
        log_ratio=p_next - q_next,
        log_correct=p_next,
    )


def concatenate(parts: Sequence[Divergence]) -> Divergence:
    """The positions of all `parts`, one after the other."""
    return Divergence(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("kl", "agrees", "correct_change", "log_ratio", "log_correct")
        }
    )


def summarize(parts: Sequence[Divergence]) -> Summary:
    """One set of figures for `parts`, each position counting once; not-a-number where a model gave that.

    Raises ValueError when there is no position to judge.
    """
    together = concatenate(parts)
    n_ratios = len(together.log_ratio)
    mean_log_ratio = float(together.log_ratio.mean()) if n_ratios else 0.0
    deviation = float(together.log_ratio.std(ddof=1)) if n_ratios > 1 else 0.0
    return Summary(
        n_tokens=len(together.kl),
        mean_kl=float(together.kl.mean()),
        median_kl=float(np.median(together.kl)),
        p99_kl=float(np.quantile(together.kl, 0.99)),
        max_kl=float(together.kl.max()),
        top1_agreement=float(together.agrees.mean()),
        mean_correct_change=float(together.correct_change.mean()) if n_ratios else 0.0,
        rms_correct_change=float(np.sqrt((together.correct_change**2).mean())) if n_ratios else 0.0,
        perplexity=math.exp(-float(together.log_correct.mean())) if n_ratios else math.nan,
        perplexity_ratio=_exp(mean_log_ratio),
        perplexity_ratio_error=_exp(mean_log_ratio) * deviation / math.sqrt(max(n_ratios, 1)),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
