"""What verification found, as values, as text and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from convert.verification.continuations import Continuation
from convert.verification.divergence import Summary
from convert.verification.file_check import FileCheck
from convert.verification.kl_limits import KL_LIMITS, LIMITS_IN_WORDS, in_words, words_table
from weblab_local.engine.prompt import INSTRUCTION, RESPONSE
from weblab_local.sizes import byte_count

GROUPS = {
    "all": "all texts",
    "ja": "Japanese",
    "en": "English",
    "template": "in the template",
    "prose": "outside the template",
}
"""The groups that are reported, each as far as there are texts of it; "from ..." where some are not this project's."""

UNQUANTIZED = ("F32", "F16")

_RUNTIME_ERROR = (
    "the runtime's own error: nothing is quantized; llama.cpp computes GELU in its tanh form, multiplies in fp16 and "
    "keeps keys and values in fp16"
)


@dataclass(frozen=True)
class TextFigures:
    """The mean KL divergence of one sequence of tokens. `label` is how it begins."""

    label: str
    language: str
    in_template: bool
    n_tokens: int
    mean_kl: float


@dataclass(frozen=True)
class PositionFigures:
    """The mean KL divergence at positions `start` up to, not including, `stop`, over all sequences that long."""

    start: int
    stop: int
    n_tokens: int
    mean_kl: float


@dataclass(frozen=True)
class FileReport:
    """One GGUF. `groups` is empty where it was not run: its own check failed, or llama.cpp could not run it."""

    check: FileCheck
    findings: Sequence[str]
    groups: Mapping[str, Summary] = field(default_factory=dict)
    texts: Sequence[TextFigures] = ()
    positions: Sequence[PositionFigures] = ()
    continuations: Sequence[Continuation] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return self.check.path.name

    @property
    def title(self) -> str:
        """The file's name, and whether it was made with an importance matrix."""
        return f"{self.name} (imatrix)" if self.check.has_imatrix else self.name

    @property
    def mixture(self) -> str:
        """What it is called in plots and tables."""
        return self.check.label

    @property
    def limit(self) -> float | None:
        """The mean KL divergence that still passes; None where none is known for its mixture."""
        return KL_LIMITS.get(self.check.mixture)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def figures(self) -> dict[str, Any]:
        """The few figures that a manifest keeps."""
        together = self.groups.get("all")
        return {
            "passed": self.passed,
            "findings": list(self.findings),
            "n_tokens": together.n_tokens if together else 0,
            "mean_kl": {name: _finite(self.groups[name].mean_kl) for name in ("ja", "en") if name in self.groups},
            "mean_kl_limit": self.limit,
            "top1_agreement": _finite(together.top1_agreement) if together else None,
            "perplexity_ratio": _finite(together.perplexity_ratio) if together else None,
        }


@dataclass(frozen=True)
class Report:
    """All files against the checkpoint of that name. `texts` describes what they were compared on."""

    checkpoint: str
    texts: Mapping[str, Any]
    files: Sequence[FileReport]

    @property
    def passed(self) -> bool:
        """Whether every file passes."""
        return all(file.passed for file in self.files)

    def figures(self) -> dict[str, dict[str, Any]]:
        """By file name, the figures that its manifest keeps, with the texts they come from."""
        return {file.name: {**file.figures(), "texts": self.texts.get("sha256")} for file in self.files}


def overview(report: Report) -> list[list[str]]:
    """A table with a row for each file, the heading first: what the README shows."""
    rows = [["file", "verdict", "size", "KL Japanese", "KL English", "KL template", "KL prose", "top-1", "ppl ratio"]]
    for file in report.files:
        means = [_nats(file.groups[name].mean_kl) if name in file.groups else "-" for name in list(GROUPS)[1:]]
        together = file.groups.get("all")
        rest = (
            [f"{together.top1_agreement:.2%}", f"{together.perplexity_ratio:.4f}"]
            if together is not None
            else ["-", "-"]
        )
        verdict = "passes" if file.passed else "FAILS"
        rows.append([_short_name(file, report), verdict, byte_count(file.check.size), *means, *rest])
    return rows


def _short_name(file: FileReport, report: Report) -> str:
    """The file's name without what all have in common, and what it does not say."""
    name = file.name.removesuffix(".gguf").removeprefix(f"{report.checkpoint}-")
    return f"{name}, imatrix" if file.check.has_imatrix and "imatrix" not in name else name


def details(file: FileReport) -> list[list[str]]:
    """All figures of one file by group, the heading first."""
    rows = [
        [
            "texts",
            "tokens",
            "mean KL",
            "median KL",
            "99% KL",
            "max KL",
            "top-1",
            "mean change of p",
            "RMS change of p",
            "perplexity ratio",
        ]
    ]
    for name, s in file.groups.items():
        rows.append(
            [
                GROUPS.get(name, name),
                str(s.n_tokens),
                *map(_nats, (s.mean_kl, s.median_kl, s.p99_kl, s.max_kl)),
                f"{s.top1_agreement:.2%}",
                f"{s.mean_correct_change:+.4%}",
                f"{s.rms_correct_change:.4%}",
                f"{s.perplexity_ratio:.5f} ± {s.perplexity_ratio_error:.5f}",
            ]
        )
    return rows


def type_rows(file: FileReport) -> list[list[str]]:
    """The file's own check, a row for each type of tensor, the heading first."""
    rows = [["type", "tensors", "largest relative error", "limit", "in"]]
    rows += [
        [t.ggml_type, str(t.n_tensors), f"{t.worst_error:.3g}", f"{t.limit:.3g}", t.worst_tensor]
        for t in file.check.types
    ]
    return rows


def sentence(file: FileReport) -> str:
    """The verdict on one file in words."""
    if not file.passed:
        return f"{file.title} FAILS."
    if "all" not in file.groups:
        return f"{file.title} passes: it holds the checkpoint's weights, settings and vocabulary."
    mean = file.groups["all"].mean_kl
    own = f" This is {_RUNTIME_ERROR}." if file.check.mixture in UNQUANTIZED else ""
    limit = f"limit {file.limit:g}" if file.limit is not None else "no limit is known for its mixture"
    return f"{file.title} passes: mean KL {_nats(mean)} ({limit}), {in_words(mean)}.{own}"


def as_text(report: Report) -> str:
    """The report for a terminal."""
    parts = [f"{report.checkpoint}: {texts_sentence(report)}", _table(overview(report))]
    for file in report.files:
        lines = [sentence(file), *(f"  - {finding}" for finding in file.findings)]
        parts.append("\n".join(lines))
        if file.groups:
            parts.append(_table(details(file)))
        if file.continuations:
            parts.append("\n".join(_continuation(c) for c in file.continuations))
    parts.append(LIMITS_IN_WORDS)
    parts.append("Mean KL in words: " + "; ".join(f"{bound}: {words}" for bound, words in words_table()) + ".")
    return "\n\n".join(parts) + "\n"


def as_json(report: Report) -> str:
    """The report for programs: every figure, null where one is not a number."""
    value = {
        "checkpoint": report.checkpoint,
        "passed": report.passed,
        "texts": dict(report.texts),
        "files": [
            {
                "name": file.name,
                "path": str(file.check.path),
                "size": file.check.size,
                "mixture": file.check.mixture,
                "imatrix": file.check.has_imatrix,
                "passed": file.passed,
                "findings": list(file.findings),
                "mean_kl_limit": file.limit,
                "tensor_types": [asdict(t) for t in file.check.types],
                "groups": {name: summary.as_dict() for name, summary in file.groups.items()},
                "by_text": [asdict(text) for text in file.texts],
                "by_position": [asdict(position) for position in file.positions],
                "continuations": [asdict(c) for c in file.continuations],
            }
            for file in report.files
        ],
    }
    return json.dumps(_jsonable(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def texts_sentence(report: Report) -> str:
    """What the files were compared on."""
    n_tokens = report.texts.get("n_tokens")
    if not n_tokens:
        return "the files themselves against the checkpoint."
    return f"next-token distributions over {n_tokens} tokens against the reference in float32; KL in nats."


def _continuation(c: Continuation) -> str:
    """A line or three; HTML and JSON have the whole texts."""
    title = f"Greedy after {_shortened(asked(c.prompt))}:"
    if not c.first_difference:
        return f"{title} all {c.n_tokens} tokens are the reference's"
    return (
        f"{title} {c.n_same} of {c.n_tokens} tokens are the reference's, then {c.first_difference}\n"
        f"    reference: {_shortened(c.reference)}\n    file:      {_shortened(c.found)}"
    )


def asked(prompt: str) -> str:
    """The instruction, and the input if there is one, without the template around it."""
    return prompt.partition(INSTRUCTION)[2].rpartition(RESPONSE)[0] or prompt


def _shortened(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")


def _nats(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.6f}" if value < 0.1 else f"{value:.4f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned, and Markdown as well."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])
