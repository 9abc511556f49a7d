"""The shard's reader: its hash is hashlib's, it keeps close to those behind it, and it ends when they do."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.source import reading
from convert.source.reading import ShardReader, widen

BUFFER = 64


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BUFFER", BUFFER)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000), window=st.integers(0, 3000), cuts=st.lists(st.integers(0, 2200)))
def test_whoever_follows_it_gets_the_files_hash(tmp_path: Path, data: bytes, window: int, cuts: list[int]) -> None:
    path = tmp_path / "shard"
    path.write_bytes(data)
    with ShardReader(path, window) as reader:
        for cut in sorted(cuts):
            reader.wait_for(cut)
            reader.used(cut)
        assert reader.sha256() == hashlib.sha256(data).hexdigest()


class Watched(ShardReader):
    """Calls `at_rest` when the reader has to wait for those behind it."""

    def __init__(self, path: Path, window: int) -> None:
        super().__init__(path, window)
        self.at_rest = threading.Event()

    def _may_go_on(self) -> bool:
        if self._read >= max(self._used + self._window, self._wanted):
            self.at_rest.set()
        return super()._may_go_on()


def test_it_stays_within_its_window(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(100 * BUFFER))
    with Watched(path, 10 * BUFFER) as reader:
        for step in range(0, 80, 5):
            reader.at_rest.wait()
            assert reader._read == (step + 10) * BUFFER
            reader.at_rest.clear()
            reader.used((step + 5) * BUFFER)
        assert reader.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_wanted_is_read_beyond_the_window_too(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(100 * BUFFER))
    with ShardReader(path, BUFFER) as reader:
        reader.wait_for(90 * BUFFER)
        assert reader._read >= 90 * BUFFER


def test_it_ends_with_its_user(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(100 * BUFFER))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), ShardReader(path, 0):
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_what_cannot_be_read_is_an_error_for_whoever_waits(tmp_path: Path) -> None:
    with ShardReader(tmp_path) as reader, pytest.raises(IsADirectoryError):
        reader.wait_for(1)


def test_every_float16_is_widened_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(2, -1)[:, ::2]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(widen(halves), halves.astype(np.float32))
    assert np.signbit(widen(np.array([-0.0, 0.0], np.float16))).tolist() == [True, False]


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("unforeseen")], ids=["memory", "unforeseen"])
def test_whatever_ends_the_reader_is_an_error_for_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object) -> None:
        raise error

    path = tmp_path / "shard"
    path.write_bytes(bytes(10 * BUFFER))
    with monkeypatch.context() as context:
        context.setattr(hashlib, "sha256", lambda: SimpleNamespace(update=failing))
        reader = ShardReader(path)
    with reader, pytest.raises(type(error), match=str(error)):
        reader.sha256()
