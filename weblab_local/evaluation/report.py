"""What is printed: a model's scores beside the card's figures, and two models beside each other. Scores in percent."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from weblab_local.evaluation.comparison import Comparison, Interval, compare, interval
from weblab_local.evaluation.tasks import SUITES, Suite
from weblab_local.i18n import _

Scores = Mapping[str, Sequence[float]]
"""The card's metric of each question, by task, from 0 to 1."""

CARD: Mapping[Suite, Mapping[str, Mapping[str, float]]] = {
    "jglue-4": {
        "weblab-10b-instruction-sft": {"jcommonsenseqa": 74.35, "jnli": 65.65, "marc_ja": 96.06, "jsquad": 79.04},
        "weblab-10b": {"jcommonsenseqa": 65.86, "jnli": 54.19, "marc_ja": 84.49, "jsquad": 60.98},
        "GPTQ 4 bit": {"jcommonsenseqa": 73.19, "jnli": 69.26, "marc_ja": 95.91, "jsquad": 72.10},
    },
    "jglue-8": {
        "weblab-10b-instruction-sft": {
            "jcommonsenseqa": 74.62,
            "jnli": 66.56,
            "marc_ja": 95.49,
            "jsquad": 78.34,
            "jaqket_v2": 63.32,
            "xlsum_ja": 20.57,
            "xwinograd_ja": 71.95,
            "mgsm": 2.0,
        },
        "weblab-10b": {
            "jcommonsenseqa": 66.58,
            "jnli": 53.74,
            "marc_ja": 82.07,
            "jsquad": 62.94,
            "jaqket_v2": 56.19,
            "xlsum_ja": 10.03,
            "xwinograd_ja": 71.95,
            "mgsm": 2.4,
        },
    },
}
"""The card's figures, in percent, for fp16; the GPTQ are those of a published 4-bit file of the first model."""


def card_columns(names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """The card's figures for these tasks: of the smaller suite where that has them all."""
    return CARD["jglue-4" if set(names) <= set(SUITES["jglue-4"]) else "jglue-8"]


def score_table(title: str, scores: Scores) -> Table:
    """A model's scores with their intervals, beside the card's. The average is given for whole suites."""
    card = card_columns(list(scores))
    table = _table(_("Questions"), title, "95%", *card)
    for name, values in scores.items():
        figures = [_figure(of.get(name)) for of in card.values()]
        table.add_row(name, str(len(values)), _percent(_mean(values)), _range(interval(values)), *figures)
    if any(set(scores) == set(suite) for suite in SUITES.values()):
        means = [_figure(sum(of.values()) / len(of)) for of in card.values()]
        average = _percent(_mean([_mean(values) for values in scores.values()]))
        table.add_row(_("average"), "", average, "", *means)
    return table


def comparison_table(first: Scores, second: Scores) -> Table:
    """Two models, A and B, on the same questions, for the tasks that both have; the differences are B's."""
    table = _table(
        _("Questions"), "A", "B", _("Difference"), "95%", _("only A right"), _("only B right"), _("p (McNemar)")
    )
    for name in (name for name in first if name in second):
        table.add_row(name, *_cells(compare(first[name], second[name])))
    return table


def _cells(found: Comparison) -> list[str]:
    return [
        str(found.n),
        _percent(found.first),
        _percent(found.second),
        f"{100 * found.difference:+.2f}",
        _range(found.interval, signed=True),
        "-" if found.only_first is None else str(found.only_first),
        "-" if found.only_second is None else str(found.only_second),
        "-" if found.p_value is None else f"{found.p_value:.3f}",
    ]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(_("Task"))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _figure(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.2f}"


def _range(found: Interval, *, signed: bool = False) -> str:
    if math.isnan(found[0]):
        return "-"
    return " .. ".join(f"{100 * edge:{'+' if signed else ''}.1f}" for edge in found)
