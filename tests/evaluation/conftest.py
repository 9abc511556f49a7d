"""What tests of the evaluation share."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from tests.evaluation.support import write_data
from weblab_local.engine.engine import Engine


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing here reaches the network: not this process, which may have read the variables before, and no other.

    What `datasets` makes of files goes to a folder of the test.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for all eight tasks."""
    return write_data(tmp_path_factory.mktemp("jglue"))


@pytest.fixture(scope="session")
def demo_engine(demo_f16: Path) -> Iterator[Engine]:
    """The demo in F16, one sequence."""
    with Engine(demo_f16, n_threads=1) as engine:
        yield engine
