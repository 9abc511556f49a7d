"""Where a model is looked for."""

import os
from pathlib import Path

import pytest

from weblab_local.errors import ModelFileError, ModelNotFoundError
from weblab_local.model_store import data_dir, demo_model, find_model, models_dir


def stored(name: str, age: int = 0) -> Path:
    models_dir().mkdir(parents=True, exist_ok=True)
    path = models_dir() / name
    path.write_bytes(b"GGUF")
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_the_demo_model_is_always_there() -> None:
    assert find_model("demo") == demo_model()
    assert demo_model().stat().st_size < 6_000_000


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "モデル.gguf"
    path.write_bytes(b"GGUF")
    assert find_model(str(path)) == path


def test_a_name_is_looked_for_in_the_store_with_or_without_its_suffix() -> None:
    path = stored("a-Q4_K_M.gguf")
    assert find_model("a-Q4_K_M") == find_model("a-Q4_K_M.gguf") == path


def test_without_a_name_it_is_the_newest() -> None:
    newest = stored("new.gguf")
    stored("old.gguf", age=100)
    assert find_model() == newest


def test_an_empty_store_says_how_to_fill_it() -> None:
    with pytest.raises(ModelNotFoundError, match="make convert"):
        find_model()


def test_an_unknown_name_is_an_error_that_names_the_store() -> None:
    with pytest.raises(ModelNotFoundError, match="weblab-home"):
        find_model("no-such-model")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelFileError, match="no GGUF"):
        find_model(str(tmp_path / "x.gguf"))


def test_the_environment_moves_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", str(tmp_path / "elsewhere"))
    assert data_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("WEBLAB_LOCAL_HOME")
    assert "weblab-local" in str(data_dir())
