"""The report as one HTML page that needs nothing else: no script, no font, no address; light and dark."""

from collections.abc import Sequence
from html import escape

from convert.verification.continuations import Continuation
from convert.verification.kl_limits import KL_LIMITS, LIMITS_IN_WORDS, words_table
from convert.verification.report import (
    FileReport,
    Report,
    asked,
    details,
    overview,
    sentence,
    texts_sentence,
    type_rows,
)

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --text: #1c1b1a; --soft: #5c5a56; --rule: #dddbd6; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #191918; --text: #eceae6; --soft: #aaa79f; --rule: #3a3936; --bad: #ff8a7d; }
}
body { background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .75rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap;
  background: var(--page); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; }
.text th, .text td { text-align: left; white-space: normal; vertical-align: top; position: static; }
.bad { color: var(--bad); } .soft { color: var(--soft); }
figure { margin: 1rem 0; overflow-x: auto; } svg { width: 100%; min-width: 36rem; max-width: 52rem; height: auto; }
svg text { fill: var(--soft) !important; font-family: system-ui, sans-serif !important; }
"""


def as_html(report: Report) -> str:
    """The whole page."""
    run = [file for file in report.files if file.groups]
    verdict = "Every file passes." if report.passed else "Not every file passes."
    body = [
        f"<h1>{escape(report.checkpoint)}: what the GGUF files keep of it</h1>",
        f"<p{'' if report.passed else _BAD}>{verdict} {escape(_first_upper(texts_sentence(report)))}</p>",
        _table(overview(report)),
        *(_verdict(file) for file in report.files),
    ]
    if run:
        body += _figures(run)
        body += [
            "<h2>All figures</h2>",
            *(f"<h3>{escape(file.title)}</h3>" + _table(details(file)) for file in run),
        ]
    if any(file.continuations for file in run):
        body += ["<h2>Greedy continuations</h2>", *(_continuations(file) for file in run if file.continuations)]
    body += ["<h2>The files against the checkpoint</h2>"]
    body += [f"<h3>{escape(file.title)}</h3>" + _table(type_rows(file)) for file in report.files if file.check.types]
    limits = [["mixture", "mean KL that passes"], *([name, f"{limit:g}"] for name, limit in KL_LIMITS.items())]
    words = [["mean KL", "in words"], *([bound, meaning] for bound, meaning in words_table())]
    body += ["<h2>Limits</h2>", f"<p>{escape(LIMITS_IN_WORDS)}</p>", _table(limits), _table(words, "text")]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.checkpoint)}: verification</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


_BAD = ' class="bad"'


def _verdict(file: FileReport) -> str:
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in file.findings)
    return f"<p{'' if file.passed else _BAD}>{escape(sentence(file))}</p>" + (
        f"<ul>{findings}</ul>" if findings else ""
    )


def _figures(files: Sequence[FileReport]) -> list[str]:
    from convert.verification import plots  # matplotlib takes a second to import

    titles: dict[str, plots.Draw] = {
        "Mean KL divergence over file size": plots.by_size,
        "Mean KL divergence by position in the text": plots.by_position,
        "Mean KL divergence of each text": plots.by_text,
    }
    return [
        f"<h2>{escape(title)}</h2>\n<figure>{plots.inline(title, draw, files)}</figure>"
        for title, draw in titles.items()
    ]


def _continuations(file: FileReport) -> str:
    rows = [["prompt", "reference", "file", "tokens that are equal"]]
    rows += [[asked(c.prompt), c.reference, c.found, _equal(c)] for c in file.continuations]
    return f"<h3>{escape(file.title)}</h3>" + _table(rows, "text")


def _equal(c: Continuation) -> str:
    return f"all {c.n_tokens}" if not c.first_difference else f"{c.n_same} of {c.n_tokens}, then {c.first_difference}"


def _table(rows: Sequence[Sequence[str]], css: str = "") -> str:
    heading, *body = rows
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f'<div class="scroll"><table class="{css}">' + "\n".join(lines) + "</table></div>"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
