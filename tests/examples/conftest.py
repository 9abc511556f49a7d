"""Fixtures of the tests of examples."""

from collections.abc import Iterator, Mapping

import pytest

from tests.examples import desktop


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """A display for windows, as the environment variables that lead to it."""
    if lacking := desktop.missing():
        pytest.skip(f"windows need {lacking}")
    with desktop.display(tmp_path_factory.mktemp("display")) as variables:
        yield variables
