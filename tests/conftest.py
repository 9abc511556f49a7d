"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest

from convert.demo.corpus import CHECKPOINT


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The demo checkpoint that is in the repository."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of optional test data; tests that want it are skipped without it."""
    folder = os.environ.get("WEBLAB_TEST_DATA")
    if not folder:
        pytest.skip("WEBLAB_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the models of whoever runs it."""
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", str(tmp_path / "weblab-home"))
