"""A sound checkpoint, to be damaged."""

import shutil
from pathlib import Path

import pytest

from tests.convert.refusals.damage import small_checkpoint


@pytest.fixture(scope="session")
def sound_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def checkpoint(sound_checkpoint: Path, tmp_path: Path) -> Path:
    """A sound one, for the test to damage."""
    return shutil.copytree(sound_checkpoint, tmp_path / "model")
