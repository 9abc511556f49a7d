"""The metrics are those of torch's own functions, whatever form the reference comes in."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convert.verification.divergence import Divergence, compare, concatenate, log_softmax, summarize

N_VOCAB = 500


def distributions(seed: int, n: int = 40, noise: float = 0.1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    reference = (3 * rng.standard_normal((n, N_VOCAB))).astype(np.float32)
    return reference, reference + (noise * rng.standard_normal(reference.shape)).astype(np.float32)


def torch_log_softmax(logits: NDArray[Any]) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float64).log_softmax(dim=1)


def test_kl_divergence_is_torchs() -> None:
    reference, logits = distributions(0)
    found = compare(reference, logits, [0] * 40, N_VOCAB).kl
    pointwise = torch.nn.functional.kl_div(
        torch_log_softmax(logits), torch_log_softmax(reference), log_target=True, reduction="none"
    )
    np.testing.assert_allclose(found, pointwise.sum(dim=1).numpy(), rtol=1e-3)


def test_a_reference_rounded_to_fp16_gives_the_same_and_never_less_than_nothing() -> None:
    reference, logits = distributions(1, noise=0.02)
    exact = compare(reference, logits, [], N_VOCAB).kl
    rounded = torch_log_softmax(reference).half().numpy()
    np.testing.assert_allclose(compare(rounded, logits, [], N_VOCAB).kl, exact, atol=3e-5)
    same = compare(rounded, reference, [], N_VOCAB).kl
    assert (same >= 0).all()
    assert same.max() < 1e-5


def test_agreement_and_the_correct_tokens_probability() -> None:
    reference, logits = distributions(2, noise=1.0)
    following = list(np.random.default_rng(3).integers(0, N_VOCAB, 40))
    found = compare(reference, logits, following, N_VOCAB)
    p, q = torch_log_softmax(reference), torch_log_softmax(logits)
    assert found.agrees.tolist() == (p.argmax(dim=1) == q.argmax(dim=1)).tolist()
    rows = torch.arange(40)
    index = torch.tensor(following)
    np.testing.assert_allclose(
        found.correct_change, (q.exp()[rows, index] - p.exp()[rows, index]).numpy(), rtol=1e-4, atol=1e-9
    )
    np.testing.assert_allclose(found.log_ratio, (p[rows, index] - q[rows, index]).numpy(), atol=1e-5)


def test_the_last_token_of_a_text_has_no_successor() -> None:
    reference, logits = distributions(4)
    found = compare(reference, logits, [7] * 39, N_VOCAB)
    assert (len(found.kl), len(found.log_ratio), len(found.correct_change)) == (40, 39, 39)


def test_padding_of_the_vocabulary_does_not_count() -> None:
    reference, logits = distributions(5)
    padded = np.concatenate([reference, np.full((40, 12), 30.0, np.float32)], axis=1)
    other = np.concatenate([logits, np.full((40, 12), -30.0, np.float32)], axis=1)
    found = compare(padded, other, [1] * 39, N_VOCAB)
    expected = compare(reference, logits, [1] * 39, N_VOCAB)
    np.testing.assert_array_equal(found.kl, expected.kl)
    np.testing.assert_array_equal(found.agrees, expected.agrees)


def test_a_token_that_the_reference_excludes_adds_nothing() -> None:
    reference = np.array([[0.0, 1.0, -np.inf]], np.float32)
    logits = np.array([[0.0, 1.0, -200.0]], np.float32)
    assert compare(reference, logits, [], 3).kl[0] == pytest.approx(0.0, abs=1e-7)


def test_log_softmax_of_large_logits_is_torchs() -> None:
    logits = np.array([[3000.0, 2999.0, -3000.0]], np.float32)
    np.testing.assert_allclose(log_softmax(logits), torch_log_softmax(logits).numpy(), rtol=1e-6)


def test_the_summary_is_over_positions() -> None:
    reference, logits = distributions(6, n=300, noise=0.5)
    following = np.random.default_rng(7).integers(0, N_VOCAB, 300).tolist()
    first = compare(reference[:100], logits[:100], following[:99], N_VOCAB)
    second = compare(reference[100:], logits[100:], following[100:299], N_VOCAB)
    found = summarize([first, second])
    p, q = torch_log_softmax(reference), torch_log_softmax(logits)
    kl = (p.exp() * (p - q)).sum(dim=1)
    assert found.n_tokens == 300
    assert found.mean_kl == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.median_kl == pytest.approx(kl.quantile(0.5).item(), rel=1e-4)
    assert found.p99_kl == pytest.approx(kl.quantile(0.99).item(), rel=1e-4)
    assert found.max_kl == pytest.approx(kl.max().item(), rel=1e-4)
    judged = [i for i in range(299) if i != 99]
    index = torch.tensor([following[i] for i in judged])
    p_next, q_next = p[judged, index], q[judged, index]
    perplexities = (torch.exp(-q_next.mean()) / torch.exp(-p_next.mean())).item()
    assert found.perplexity == pytest.approx(torch.exp(-p_next.mean()).item(), rel=1e-4)
    assert found.perplexity_ratio == pytest.approx(perplexities, rel=1e-4)
    deviation = (p_next - q_next).std().item() / math.sqrt(298)
    assert found.perplexity_ratio_error == pytest.approx(perplexities * deviation, rel=1e-3)
    change = q_next.exp() - p_next.exp()
    assert found.mean_correct_change == pytest.approx(change.mean().item(), rel=1e-3, abs=1e-7)
    assert found.rms_correct_change == pytest.approx(change.pow(2).mean().sqrt().item(), rel=1e-3)


def test_a_broken_model_gives_not_a_number_instead_of_a_good_figure() -> None:
    reference, logits = distributions(8)
    logits[3, 5] = np.nan
    parts: list[Divergence] = [compare(reference, logits, [1] * 39, N_VOCAB)]
    assert math.isnan(summarize(parts).mean_kl)
    assert not concatenate(parts).kl.max() < 1e9
