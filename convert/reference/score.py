"""How likely the fp16 reference finds given continuations: what `python -m convert.score` prints.

A context is computed once for all its continuations, where they fit the model's positions together with it. Each pass
takes as many requests through the layers as PASS_TOKENS allows, and gives what it found before the next begins.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConversionError
from convert.model.gpt_neox import hyperparameters
from convert.reference.forward import Fork
from convert.reference.reference import Progress, logits
from convert.source.checkpoint import Checkpoint

PASS_TOKENS = 32768
"""Tokens that go through the layers together: their hidden states are in memory, 0.64 GB for weblab-10b. Reading all
weights once for so many takes less than a hundredth of the time that computing does."""

Request = Mapping[str, Any]
Scores = list[tuple[float, bool]]


def read_requests(path: Path) -> list[Request]:
    """The requests of a file. Raises ConversionError where it cannot be read or a line is none."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(request["context"] and all(request["continuations"]) for request in found):
            raise ValueError("a context or continuation is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} cannot be read as requests: {error!r}.") from None
    return found


def score(
    checkpoint: Checkpoint, requests: Sequence[Request], *, state: Path | None = None, progress: Progress | None = None
) -> Iterator[Scores]:
    """(log-likelihood, is greedy) of each of the continuations of each of the `requests`, a pass after the other.

    `state`: a pass that was interrupted goes on there. Raises as `convert.reference.reference.logits` does.
    """
    longest = hyperparameters(checkpoint.config).max_position_embeddings
    for group in _passes(requests):
        asked = [part for request in group for part in _sequences(request, longest)]
        sequences, forks = [ids for ids, _ in asked], [fork for _, fork in asked]
        found = logits(checkpoint, sequences, state=state, progress=progress, forks=forks)
        for request in group:
            yield _scores(request, longest, found)
        next(found, None)  # lets the pass end, which removes its state


def _sequences(request: Request, longest: int) -> list[tuple[list[int], Fork]]:
    """The context with all continuations as its branches; with one at a time where the context is too long for that."""
    context: list[int] = request["context"]
    branches = [continuation[:-1] for continuation in request["continuations"]]
    together = len(context) + sum(map(len, branches)) <= longest
    return [
        ([*context, *(token for branch in group for token in branch)], Fork(len(context), [len(b) for b in group]))
        for group in ([branches] if together else [[branch] for branch in branches])
    ]


def _scores(request: Request, longest: int, found: Iterator[NDArray[np.float32]]) -> Scores:
    """The scores of a request from the logits of its sequences, which are the next that are `found`."""
    last = len(request["context"]) - 1
    continuations = iter(request["continuations"])
    scores = []
    for _ids, fork in _sequences(request, longest):
        rows, start = next(found), fork.stem
        for length in fork.branches:
            predicting = np.concatenate([rows[last : last + 1], rows[start : start + length]])
            scores.append(_score(predicting, next(continuations)))
            start += length
    return scores


def _passes(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Whole requests in their order, as many as make up PASS_TOKENS tokens, at least one."""
    group: list[Request] = []
    n_tokens = 0
    for request in requests:
        size = len(request["context"]) + sum(map(len, request["continuations"]))
        if group and n_tokens + size > PASS_TOKENS:
            yield group
            group, n_tokens = [], 0
        group.append(request)
        n_tokens += size
    if group:
        yield group


def _score(rows: NDArray[np.float32], continuation: Sequence[int]) -> tuple[float, bool]:
    """Of a continuation whose tokens are predicted by `rows` of logits (n_tokens, n_vocab)."""
    wide = rows.astype(np.float64)
    logprobs = wide[np.arange(len(continuation)), continuation] - np.logaddexp.reduce(wide, axis=1)
    return float(logprobs.sum()), bool((wide.argmax(axis=1) == continuation).all())
