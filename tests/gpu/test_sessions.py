"""Conversations saved with their KV state: taken back on the device that computed it, read again on any other."""

from pathlib import Path

import pytest

from tests.gpu.support import LAYERS, Target, on_cpu
from tests.support.engines import GREEDY, SHORT_ANSWERS
from weblab_local.chat.saved import load_session, save_session
from weblab_local.engine.engine import Engine

FIRST, SECOND = SHORT_ANSWERS[30], SHORT_ANSWERS[60]


def save(engine: Engine, path: Path) -> str:
    """Hold a conversation, save it, and return how it would go on."""
    chat = engine.chat(None, GREEDY)
    assert chat.send(FIRST.instruction).text == FIRST.response
    save_session(chat, path, with_state=True)
    return chat.send(SECOND.instruction).text


def go_on(engine: Engine, path: Path) -> tuple[int, str, int]:
    """Tokens that were restored, the next answer, and of how many tokens the cache served it."""
    loaded = load_session(engine, path, GREEDY)
    reply = loaded.chat.send(SECOND.instruction)
    return loaded.tokens_restored, reply.text, reply.stats.cached_tokens


@pytest.mark.parametrize("n_gpu_layers", [3, LAYERS])
def test_the_device_takes_back_what_it_computed(n_gpu_layers: int, target: Target, tmp_path: Path) -> None:
    with target.load("demo", n_gpu_layers=n_gpu_layers) as engine:
        expected = save(engine, tmp_path / "session")
    with target.load("demo", n_gpu_layers=n_gpu_layers) as engine:
        restored, text, cached = go_on(engine, tmp_path / "session")
    assert text == expected
    assert cached >= restored > 0


def test_what_the_device_computed_is_read_again_on_the_cpu_and_the_other_way(target: Target, tmp_path: Path) -> None:
    with target.load("demo") as engine:
        expected = save(engine, tmp_path / "device")
    with on_cpu("demo") as engine:
        assert go_on(engine, tmp_path / "device")[:2] == (0, expected)
        save(engine, tmp_path / "cpu")
    with target.load("demo") as engine:
        assert go_on(engine, tmp_path / "cpu")[:2] == (0, expected)


def test_what_the_device_computed_is_read_again_on_another_device(target: Target, second: str, tmp_path: Path) -> None:
    with target.load("demo") as engine:
        expected = save(engine, tmp_path / "session")
    other = Target("rpc", (second,))
    with other.load("demo", n_gpu_layers=LAYERS) as engine:
        assert engine.plan is not None
        if target.backend != "rpc":  # both are there then, and layers on both; llama.cpp's own state would fit
            assert len(engine.plan.devices) == 2
        assert go_on(engine, tmp_path / "session")[:2] == (0, expected)
