"""A running GGUF against the reference: sequences to compare on, ids, divergences, and their figures by group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from numpy.typing import NDArray
from tokenizers import Tokenizer

from convert.reference.texts import Language, Text, sequences
from convert.verification.continuations import count_same
from convert.verification.divergence import Divergence, Summary, compare, concatenate, summarize
from convert.verification.report import PositionFigures, TextFigures
from convert.verification.runtime import CHUNK_TOKENS, Runtime
from weblab_local.engine.prompt import INSTRUCTION, RESPONSE

_LABEL_CHARACTERS = 24


@dataclass(frozen=True)
class Sample:
    """Token ids that are compared position by position, and what kind of text they are."""

    ids: Sequence[int]
    language: Language
    in_template: bool
    label: str
    origin: str = ""


def samples(texts: Sequence[Text], tokenizer: Tokenizer, end_of_text: int, n_ctx: int, max_tokens: int) -> list[Sample]:
    """Sequences of up to `n_ctx` ids from `texts`, in all at most `max_tokens`, each kind of text with its share.

    A kind is what has the same origin, is in the same language, and in the template or not.
    """
    kinds: dict[tuple[Language, bool, str], list[Text]] = {}
    for text in texts:
        kinds.setdefault((text.language, text.in_template, text.origin), []).append(text)
    found = []
    for (language, in_template, origin), of_kind in kinds.items():
        for ids in sequences(of_kind, tokenizer, end_of_text, n_ctx, max_tokens // len(kinds)):
            found.append(Sample(ids, language, in_template, _label(tokenizer.decode(ids)), origin))
    return found


def _label(text: str) -> str:
    """How a text begins; in the template, how its instruction does."""
    beginning = " ".join(text.partition(INSTRUCTION)[2].split() or text.split())
    return beginning[:_LABEL_CHARACTERS] + ("…" if len(beginning) > _LABEL_CHARACTERS else "")


def prompts(texts: Sequence[Text], most: int) -> list[str]:
    """The instructions of up to `most` texts in the template, up to where the answer begins; languages take turns."""
    found: dict[Language, list[str]] = {"ja": [], "en": []}
    for text in texts:
        before, mark, after = text.text.partition(RESPONSE)
        if text.in_template and mark:
            found[text.language].append(before + mark + ("\n" if after.startswith("\n") else ""))
    longest = max(map(len, found.values()))
    turns = [of_language[i] for i in range(longest) for of_language in found.values() if i < len(of_language)]
    return turns[:most]


def token_id_findings(runtime: Runtime, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[str]:
    """A sentence if llama.cpp's ids for any of `texts` are not Hugging Face's, nothing if all are."""
    different = []
    for text in texts:
        found = runtime.encode(text.text)
        expected = list(tokenizer.encode(text.text, add_special_tokens=False).ids)
        if found != expected:
            at = count_same(found, expected)
            here, there = found[at : at + 1], expected[at : at + 1]
            different.append(
                f"{_label(text.text)!r} from token {at} on, {here} ({tokenizer.decode(here)!r}) instead of {there} "
                f"({tokenizer.decode(there)!r})"
            )
    if not different:
        return []
    return [f"Token ids differ from Hugging Face's in {len(different)} of {len(texts)} texts: first {different[0]}."]


def measure(
    runtime: Runtime,
    of: Sequence[Sample],
    reference: Callable[[int], NDArray],  # type: ignore[type-arg]
    n_vocab: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Divergence]:
    """The divergence of each sample, a chunk of positions in memory at a time.

    `reference(i)` gives the log-probabilities (n_tokens, at least n_vocab) of sample i; `progress` gets tokens.
    """
    done, total = 0, sum(len(sample.ids) for sample in of)
    results = []
    for number, sample in enumerate(of):
        expected = reference(number)
        parts = []
        for chunk, logits in enumerate(runtime.logits(sample.ids)):
            start = chunk * CHUNK_TOKENS
            stop = start + len(logits)
            parts.append(compare(expected[start:stop], logits, sample.ids[start + 1 : stop + 1], n_vocab))
            done += len(logits)
            if progress is not None:
                progress(done, total)
        results.append(concatenate(parts))
    return results


def by_group(of: Sequence[Sample], parts: Sequence[Divergence]) -> dict[str, Summary]:
    """The figures of `report.GROUPS`, for the groups that have samples, and of each origin but this project."""
    origins = dict.fromkeys(sample.origin for sample in of if sample.origin)
    chosen: dict[str, Callable[[Sample], bool]] = {
        "all": lambda _: True,
        "ja": lambda sample: sample.language == "ja",
        "en": lambda sample: sample.language == "en",
        "template": lambda sample: sample.in_template,
        "prose": lambda sample: not sample.in_template,
        **{f"from {origin}": partial(_is_from, origin) for origin in origins},
    }
    groups = {
        name: [part for sample, part in zip(of, parts, strict=True) if belongs(sample)]
        for name, belongs in chosen.items()
    }
    return {name: summarize(members) for name, members in groups.items() if members}


def _is_from(origin: str, sample: Sample) -> bool:
    return sample.origin == origin


def by_text(of: Sequence[Sample], parts: Sequence[Divergence]) -> list[TextFigures]:
    """Each sample's mean KL divergence."""
    return [
        TextFigures(sample.label, sample.language, sample.in_template, len(sample.ids), float(part.kl.mean()))
        for sample, part in zip(of, parts, strict=True)
    ]


def by_position(parts: Sequence[Divergence]) -> list[PositionFigures]:
    """The mean KL divergence over all samples at positions 0, 1, 2 to 3, 4 to 7, 8 to 15 and so on."""
    longest = max((len(part.kl) for part in parts), default=0)
    edges = [0, *(1 << power for power in range(longest.bit_length() + 1))]
    figures = []
    for start, stop in pairwise(edges):
        values = [float(value) for part in parts for value in part.kl[start:stop]]
        if values:
            figures.append(PositionFigures(start, min(stop, longest), len(values), sum(values) / len(values)))
    return figures
