"""Checkpoints to convert, and folders and disks to write to."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.convert.writing.output.support import Disk
from tests.support.checkpoints import random_checkpoint


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes a while to convert: 16 MB, which IQ4_XS is slow with."""
    return random_checkpoint(
        tmp_path_factory.mktemp("large") / "large",
        layers=1,
        hidden=512,
        vocab_size=14_000,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_checkpoint(tmp_path_factory.mktemp("small") / "model", hidden=128, shards=3)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A checkpoint in several shards that the test may change."""
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder for the results, empty."""
    path = tmp_path / "results"
    path.mkdir()
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a file system of so many bytes and gives its folder."""
    with ExitStack() as mounted:

        def make(n_bytes: int) -> Path:
            path = tmp_path / "disk"
            path.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(path)]
            if platform.system() != "Linux" or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
                pytest.skip("needs Linux and the right to mount a tmpfs")
            mounted.callback(subprocess.run, ["umount", str(path)], check=True)
            return path

        yield make
