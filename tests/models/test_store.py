"""The store: where a model is looked for, and how one gets in and out."""

import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from tests.support.systems import on_linux, on_posix
from weblab_local.errors import ModelFileError, ModelNotFoundError, WeblabError
from weblab_local.home import data_dir, read_settings, write_settings
from weblab_local.models.store import (
    demo_model,
    find_model,
    import_model,
    models_dir,
    remove_model,
    stored_models,
    use_model,
)


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


def test_a_folder_is_no_model() -> None:
    (models_dir() / "folder.gguf").mkdir(parents=True)
    assert stored_models() == []
    with pytest.raises(ModelNotFoundError, match="no model called 'folder'"):
        remove_model("folder")
    assert (models_dir() / "folder.gguf").is_dir()


def test_a_link_to_what_is_not_there_can_be_seen_and_removed() -> None:
    models_dir().mkdir(parents=True)
    (models_dir() / "unplugged.gguf").symlink_to("/nowhere/unplugged.gguf")
    (link,) = stored_models()
    assert link.size == 0
    with pytest.raises(ModelNotFoundError, match="no model in"):
        find_model()
    remove_model("unplugged")
    assert stored_models() == []


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


def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4242\n")
    with pytest.raises(ModelFileError, match="pointer of git-lfs") as caught:
        find_model(str(tmp_path / "x.gguf"))
    assert "git lfs pull" in caught.value.remedy


def test_the_environment_moves_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", str(tmp_path / "elsewhere"))
    assert data_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("WEBLAB_LOCAL_HOME")
    assert "weblab-local" in str(data_dir())


def test_a_name_that_no_file_can_have_is_unknown() -> None:
    for name in ("n" * 300, "~\0", "~\ud83d", "~nobody-of-that-name/x", "", ".", "/dev/null/x"):
        with pytest.raises(ModelNotFoundError):
            find_model(name)


def test_a_chosen_default_that_is_gone_is_passed_over() -> None:
    stored("chosen.gguf", age=100)
    newest = stored("new.gguf")
    use_model("chosen.gguf")
    assert find_model().name == "chosen.gguf"
    remove_model("chosen")
    assert find_model() == newest


def test_settings_that_are_damaged_count_as_none() -> None:
    newest = stored("new.gguf")
    for text in ("", "[1]", '{"model": 5}', '{"model": "x"', "\x00"):
        (data_dir() / "settings.json").write_text(text)
        assert find_model() == newest
    use_model("new")
    assert read_settings() == {"model": "new"}


@pytest.mark.parametrize(("kept", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_is_found_however_its_characters_are_composed(
    kept: Literal["NFC", "NFD"], typed: Literal["NFC", "NFD"]
) -> None:
    """macOS' Finder takes names apart: デ is テ and a mark there."""
    path = stored(unicodedata.normalize(kept, "デモ.gguf"))
    assert use_model(unicodedata.normalize(typed, "デモ")).path == find_model() == path
    assert remove_model(unicodedata.normalize(typed, "デモ.gguf")) == path


@on_linux
def test_of_two_names_that_differ_in_nothing_else_each_is_itself() -> None:
    forms: list[Literal["NFC", "NFD"]] = ["NFC", "NFD"]
    for form in forms:
        path = stored(unicodedata.normalize(form, "デモ.gguf"))
        assert use_model(path.stem).path == path


def test_choosing_a_default_keeps_the_other_settings() -> None:
    stored("a.gguf")
    write_settings({"n_threads": 3})
    use_model("a")
    assert read_settings() == {"n_threads": 3, "model": "a"}


@pytest.mark.parametrize("name", ["blob-without-suffix", "model.v1", "大.GGUF"])
def test_an_imported_file_can_be_found_whatever_its_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF rest")
    model = import_model(tmp_path / name)
    assert find_model(model.name) == model.path
    assert model.path.read_bytes() == b"GGUF rest"


@pytest.mark.parametrize("name", ["x.gguf.gguf", ".gguf"])
def test_an_imported_file_with_its_suffix_twice_can_be_used_and_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    model = import_model(tmp_path / name)
    assert use_model(model.name).path == find_model() == model.path
    assert remove_model(model.name) == model.path


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeblabError, match="is an adapter, not a model"):
        import_model(tmp_path / "x.lora.gguf")
    models_dir().mkdir(parents=True)
    (models_dir() / "x.lora.gguf").write_bytes(b"GGUF")
    assert stored_models() == []


@pytest.mark.parametrize("name", ["x.imatrix.gguf", "x.imatrix", "x.imatrix.GGUF"])
def test_an_importance_matrix_is_refused_before_it_is_copied(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(WeblabError, match="importance matrix"):
        import_model(tmp_path / name)
    assert not models_dir().exists()


def test_the_demos_name_is_not_for_others(tmp_path: Path) -> None:
    (tmp_path / "demo.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeblabError, match="bundled"):
        import_model(tmp_path / "demo.gguf")
    assert stored_models() == []


def test_an_import_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=103))
    with pytest.raises(WeblabError, match="disk space"):
        import_model(tmp_path / "x.gguf")
    assert not models_dir().exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails", ["os.fsync", "shutil.copyfile"])
def test_an_import_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, fails: str
) -> None:
    def failing(*_: object) -> None:
        raise error

    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "x.json").write_text("{}")
    monkeypatch.setattr(fails, failing)
    with pytest.raises((WeblabError, KeyboardInterrupt)) as raised:
        import_model(tmp_path / "x.gguf")
    assert isinstance(raised.value, KeyboardInterrupt) or "No space left on device" in str(raised.value)
    assert list(models_dir().iterdir()) == []


def test_an_import_reports_its_progress(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20 << 20))
    seen: list[tuple[int, int]] = []
    import_model(tmp_path / "x.gguf", lambda done, total: seen.append((done, total)))
    size = 4 + (20 << 20)
    assert seen == [(1 << 24, size), (size, size)]


@on_posix
def test_a_place_for_the_store_that_cannot_be_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", "/dev/null/home")
    with pytest.raises(WeblabError, match="cannot be copied"):
        import_model(tmp_path / "x.gguf")
