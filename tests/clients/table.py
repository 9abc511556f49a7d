"""The table of clients in docs/serving.md: what of each the tests have shown to work."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.clients.environments import CLIENTS, ROOT

DOCUMENTS = {"en": ROOT / "docs" / "serving.md", "ja": ROOT / "docs" / "ja" / "serving.md"}
HEADS = {
    "en": ("client", "version", "plain", "streamed", "structured", "besides"),
    "ja": ("クライアント", "版", "通常", "ストリーム", "構造化", "ほか"),
}
COLUMNS = ("plain", "streamed", "structured", "other")


def row(name: str, result: Mapping[str, Any], language: str) -> str:
    """A client's row: its version, and by which of its functions, classes or settings each was asked for."""
    comma = {"en": ", ", "ja": "、"}[language]
    ways = (comma.join(f"`{way}`" for way in dict.fromkeys(result[column])) or "-" for column in COLUMNS)
    return f"| {' | '.join((name, result['version'], *ways))} |"


def table(results: Mapping[str, Any], language: str) -> list[str]:
    """The lines of the table of those clients that there are results of, in the order of CLIENTS."""
    head = [f"| {' | '.join(HEADS[language])} |", f"|{' --- |' * len(HEADS[language])}"]
    return head + [row(client.name, results[client.name], language) for client in CLIENTS if client.name in results]


def documented(language: str) -> list[str]:
    """The lines of the table in the guide; none, if it has none."""
    lines = DOCUMENTS[language].read_text(encoding="utf-8").splitlines()
    head = f"| {' | '.join(HEADS[language])} |"
    if head not in lines:
        return []
    rows = lines[lines.index(head) :]
    return rows[: next((n for n, line in enumerate(rows) if not line.startswith("|")), None)]


def undocumented(results: Mapping[str, Any]) -> Sequence[str]:
    """The lines of the tables in both languages that the guides have otherwise."""
    return [line for language in HEADS for line in table(results, language) if line not in documented(language)]
