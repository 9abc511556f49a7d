"""Greedy continuations of the reference, without running it once per token.

A quantized file proposes a continuation; one teacher-forced pass of the reference over all prompts says how far it
would have written the same, and what it writes instead at the first difference. From there the file proposes again.
The result is the reference's own greedy decoding, after as many passes as there are differences, and one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Propose = Callable[[Sequence[int], int], list[int]]
"""Given ids and a number of tokens, a continuation of at most so many and at least one."""

Logits = Callable[[Sequence[Sequence[int]]], Iterable[NDArray[Any]]]
"""The reference's logits (n_tokens, n_vocab) for each of some sequences."""


@dataclass(frozen=True)
class Continuation:
    """What the reference and a file write after the same prompt. `n_same`: tokens before the first that differs."""

    prompt: str
    reference: str
    found: str
    n_same: int
    n_tokens: int
    first_difference: str
    """The file's token and the reference's there, "" where there is none."""


def reference_continuations(
    prompts: Sequence[Sequence[int]], max_tokens: int, end: int, n_vocab: int, propose: Propose, logits: Logits
) -> list[list[int]]:
    """The reference's greedy continuation of each prompt, up to and with `end`, of tokens below `n_vocab`."""
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    while unfinished:
        begun = {i: [*prompts[i], *answers[i]] for i in unfinished}
        proposed = {i: propose(begun[i], max_tokens - len(answers[i])) for i in unfinished}
        found = logits([begun[i] + proposed[i][:-1] for i in unfinished])
        for i, rows in zip(unfinished, found, strict=True):
            wanted = rows[len(begun[i]) - 1 :, :n_vocab].argmax(axis=1).tolist()
            same = count_same(wanted, proposed[i])
            answers[i] += wanted[: same + 1]
            if end in answers[i]:  # a proposal may go on after it
                del answers[i][answers[i].index(end) + 1 :]
        unfinished = [i for i in unfinished if answers[i][-1] != end and len(answers[i]) < max_tokens]
    return answers


def count_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two continuations have in common before they differ or one ends."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def compare_continuations(
    prompt: str, reference: Sequence[int], found: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> Continuation:
    """Set two continuations of `prompt` side by side; `decode` gives the text of ids."""
    same = count_same(reference, found)
    differs = same < max(len(reference), len(found))

    def token(ids: Sequence[int]) -> str:
        return repr(decode(ids[same : same + 1])) if same < len(ids) else "nothing"

    return Continuation(
        prompt=prompt,
        reference=decode(reference),
        found=decode(found),
        n_same=same,
        n_tokens=len(reference),
        first_difference=f"{token(found)} instead of {token(reference)}" if differs else "",
    )
