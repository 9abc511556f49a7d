"""A checkpoint as save_pretrained writes it, its model, and what it is converted to."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GPTNeoXForCausalLM

from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("plain") / "model", hidden=64, intermediate=128)


@pytest.fixture
def model(plain: Path) -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM.from_pretrained(plain, dtype="auto")


@pytest.fixture(scope="session")
def expected(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The GGUF of the plain checkpoint."""
    return converted(plain, tmp_path_factory.mktemp("expected"), "Q8_0")[0].read_bytes()


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint without its weights, of the same name."""
    made = tmp_path / "model"
    made.mkdir()
    for name in SMALL_FILES:
        shutil.copy(plain / name, made)
    return made


@pytest.fixture
def gguf(folder: Path, tmp_path: Path) -> Callable[[], bytes]:
    """Converts `folder`."""
    return lambda: converted(folder, tmp_path / "output", "Q8_0")[0].read_bytes()
