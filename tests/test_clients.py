"""The guides' table of clients names those that `make test-clients` tests, at the versions that it installs.

What works is compared there, with what the tests have shown.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.__main__ import fetched
from tests.clients.environments import CLIENTS, HERE, Client
from tests.clients.table import HEADS, documented


@pytest.mark.parametrize("language", HEADS)
def test_the_table_has_the_clients_and_versions_that_are_tested(language: str) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in documented(language)[2:]]
    assert [cells[:2] for cells in rows] == [[client.name, client.pinned] for client in CLIENTS]


def test_every_client_has_its_tests() -> None:
    texts = [path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py")]
    names = {name for name, value in vars(environments).items() if isinstance(value, Client)}
    assert sorted(re.findall(r"import (\w+) as CLIENT", "".join(texts))) == sorted(names)
    assert {getattr(environments, name) for name in names} == {*CLIENTS}


def test_a_client_that_cannot_be_fetched_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "current" / ".installed"
    mark.parent.mkdir()
    for code, is_there in (("raise SystemExit('no route to host')", False), ("", True)):
        assert fetched((sys.executable, "-c", code), mark, "requirements/current.txt") == is_there
        assert mark.exists() == is_there
    assert capsys.readouterr().err.split("\n") == [
        "no route to host",
        "requirements/current.txt: this cannot be fetched, and is not tested",
        "",
    ]
