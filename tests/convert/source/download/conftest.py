"""The Hub, its user, and checkpoints to serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.convert.source.download.support import (
    MIB,
    OTHERS,
    README,
    TINY,
    Conversion,
    Hub,
    User,
)
from tests.support.checkpoints import random_checkpoint


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def gone() -> Hub:
    """A Hub that cannot be reached any more."""
    with Hub() as hub:
        return hub


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path / "home", tmp_path / "models")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards, each of more than a megabyte as the Hub's LFS files are, among other files."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    random_checkpoint(folder, vocab_size=1200, dtype="float32", shards=3)
    (folder / "README.md").write_text(README)
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(2 * MIB))
    return folder


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in a single file that is larger than what huggingface_hub writes at a time."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    return random_checkpoint(folder, layers=1, vocab_size=7000, dtype="float32")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in shards the first two of which are larger than what huggingface_hub writes at a time."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    return random_checkpoint(folder, layers=1, vocab_size=12000, dtype="float32", shards=3)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Conversion]:
    folder = tmp_path_factory.mktemp("converted")
    user = User(folder / "home", folder / "models")
    with Hub() as hub:
        repo = hub.add(TINY, tiny)
        done = user.convert(hub)
        assert done.returncode == 0, done.stderr
        yield Conversion(hub, repo.commit, user, done.stdout, done.stderr, hub.fetched)
