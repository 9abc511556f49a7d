"""What the tests of saved conversations share: an engine, and a conversation of three turns with it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from weblab_local.chat.saved import load_session, save_session
from weblab_local.chat.session import ChatSession
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.models.store import demo_model

GREEDY = SamplingParams(temperature=0, max_tokens=100)
QUESTIONS = ["日本の首都はどこですか？", "俳句を一つ作ってください。", "Say hello."]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(demo_model(), n_threads=1, n_ctx=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def held(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversation of three turns, with a system message and its KV state."""
    chat = engine.chat("親切に答えてください。", GREEDY)
    for question in QUESTIONS:
        chat.send(question)
    path = tmp_path_factory.mktemp("sessions") / "held.weblab"
    save_session(chat, path, with_state=True)
    return path


@pytest.fixture
def saved(held: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(held, tmp_path / "saved.weblab"))


@pytest.fixture
def chat(engine: Engine, held: Path) -> ChatSession:
    """The conversation in memory."""
    return load_session(engine, held, GREEDY).chat
