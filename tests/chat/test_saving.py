"""Saving a conversation: whole or not at all, wherever it goes, whatever it holds, and without its size in memory."""

import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.chat.conftest import QUESTIONS
from tests.support import windows
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted
from tests.support.privacy import FILE, FOLDER, everything_open, mode
from tests.support.systems import on_posix
from weblab_local.chat.saved import STATE, SessionError, load_session, save_session, sessions_folder
from weblab_local.chat.session import ChatSession
from weblab_local.cli.chat_commands import Screen, run_command
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.models.store import demo_model


@on_posix
def test_a_full_disk_leaves_the_old_file(chat: ChatSession, saved: Path) -> None:
    import resource

    before = saved.read_bytes()
    chat.send(QUESTIONS[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for largest in (0, 100, 10_000, len(before) - 30):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
        try:
            with pytest.raises(SessionError, match="cannot be saved"):
                save_session(chat, saved, with_state=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir() if "saved" in path.name] == [saved.name]


@on_posix
def test_a_place_that_cannot_be_written_to_is_explained(chat: ChatSession, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (saved / "x.weblab", Path("/dev/null/x.weblab"), Path("/proc/x.weblab"), tmp_path / "folder"):
        with pytest.raises(SessionError, match="cannot be saved"):
            save_session(chat, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "saved.weblab"]


def test_a_folder_that_is_missing_is_made(chat: ChatSession, tmp_path: Path) -> None:
    save_session(chat, tmp_path / "a" / "b" / "c.weblab")
    assert load_session(chat.engine, tmp_path / "a" / "b" / "c.weblab").chat.turns == chat.turns


def test_nobody_else_can_read_a_conversation_not_even_while_it_is_saved(
    chat: ChatSession, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    save_prefix = chat.engine.save_prefix

    def watched(ids: Sequence[int], path: Path) -> int:
        n_saved = save_prefix(ids, path)
        modes.extend(mode(written) for written in (path, *tmp_path.rglob("*.partial")))
        return n_saved

    monkeypatch.setattr(chat.engine, "save_prefix", watched)
    saved.chmod(0o644)
    left_over = tmp_path / "saved.weblab.partial"
    left_over.write_bytes(b"")
    left_over.chmod(0o644)
    tmp_path.chmod(0o755)
    with everything_open():
        for path in (saved, tmp_path / "new" / "x.weblab"):
            save_session(chat, path, with_state=True)
            assert mode(path) == FILE
    assert modes == [FILE] * 4
    assert mode(tmp_path / "new") == FOLDER
    assert mode(tmp_path) == 0o755, "a folder that was chosen stays as it is"


def test_the_folder_of_saved_conversations_becomes_private(chat: ChatSession) -> None:
    sessions_folder().mkdir(parents=True)
    sessions_folder().chmod(0o755)
    assert run_command(Screen(chat.engine, chat, lambda _stream: None), "/save")
    assert mode(sessions_folder()) == FOLDER
    assert [mode(path) for path in sessions_folder().iterdir()] == [FILE]


@pytest.mark.parametrize("name", ["a\0b", "a\ud83d", "a\0b/c"])
def test_a_name_that_no_file_can_have_is_explained(chat: ChatSession, tmp_path: Path, name: str) -> None:
    for with_state in (False, True):
        with pytest.raises(SessionError, match="cannot be saved"):
            save_session(chat, tmp_path / name, with_state=with_state)
    with pytest.raises(SessionError):
        load_session(chat.engine, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_no_file_can_hold_is_explained(chat: ChatSession, saved: Path) -> None:
    before = saved.read_bytes()
    strange = chat.to_dict()
    strange["turns"][0]["answer"] = "\ud83d"
    with pytest.raises(SessionError, match="cannot be saved"):
        save_session(ChatSession.from_dict(chat.engine, strange), saved)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("line", ["/system \udce3", "/save a\0b", "/save \ud83d", "/save ~\0/x", "/save ~\ud83d"])
def test_no_command_about_saving_ends_the_chat(chat: ChatSession, line: str) -> None:
    screen = Screen(chat.engine, chat, lambda _stream: None)
    with pytest.raises(WeblabError):
        run_command(screen, line)
    assert run_command(screen, "/save")
    assert run_command(screen, "/load")
    assert screen.chat.turns == chat.turns


@pytest.mark.parametrize("name", ["10:30", "NUL", "どう?", "con.weblab", "folder/aux"])
def test_a_name_that_windows_takes_for_something_else_is_refused_there(
    chat: ChatSession, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It would save to a device, or into a hidden stream of a file."""
    screen = Screen(chat.engine, chat, lambda _stream: None)
    monkeypatch.setattr(sys, "platform", "win32")
    for command in ("save", "load"):
        with pytest.raises(WeblabError, match=r"No file can be called .* on Windows"):
            run_command(screen, f"/{command} {name}")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
def test_a_session_can_be_replaced_after_it_was_loaded(
    chat: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows replaces no file that is mapped, as the KV state is while it is restored."""
    path = tmp_path / "x.weblab"
    save_session(chat, path, with_state=True)
    loaded = load_session(chat.engine, path)
    assert loaded.tokens_restored
    monkeypatch.setattr(os, "replace", windows.refusing(os.replace, position=1))
    save_session(loaded.chat, path, with_state=True)
    assert load_session(chat.engine, path).chat.turns == chat.turns


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are text")
def test_a_model_whose_name_is_no_text_has_sessions_too(tmp_path: Path) -> None:
    model = Path(shutil.copy(demo_model(), tmp_path / os.fsdecode(b"mod\xe3l.gguf")))
    with Engine(model, n_threads=1, n_ctx=512) as engine:
        save_session(engine.chat("短く。"), tmp_path / "x.weblab")
        assert load_session(engine, tmp_path / "x.weblab").chat.system == "短く。"


def test_a_model_from_a_relative_path_has_sessions_after_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(demo_model(), tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    with Engine(Path("model.gguf"), n_threads=1, n_ctx=512) as engine:
        monkeypatch.chdir("/")
        save_session(engine.chat("短く。"), tmp_path / "x.weblab")
        assert load_session(engine, tmp_path / "x.weblab").chat.system == "短く。"
        assert engine.description()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_state_goes_through_files_and_not_through_memory(tmp_path: Path) -> None:
    """Peaks of resident memory: a layer's share when the state is saved, the file's own pages when it is loaded."""
    checkpoint = random_checkpoint(tmp_path / "wide", hidden=1024, heads=8, layers=6)
    (model,) = converted(checkpoint, tmp_path / "out", "F16")
    path = tmp_path / "wide.weblab"
    with Engine(model, n_threads=1, n_ctx=1024) as engine:
        chat = engine.chat(params=SamplingParams(temperature=0, max_tokens=1))
        chat.send("a" * 900)
        save_session(chat, path, with_state=True)  # what is imported and cached once
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(STATE).file_size
        assert size > 20e6
        assert peak_growth(lambda: save_session(chat, path, with_state=True)) < 0.3 * size
        assert peak_growth(lambda: load_session(engine, path)) < 1.3 * size
        assert load_session(engine, path).tokens_restored > 1000


def peak_growth(action: Callable[[], object]) -> int:
    """Bytes by which the resident memory grows at most while `action` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def test_an_interrupted_save_leaves_the_old_file(
    chat: ChatSession, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_session(chat, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir() if "saved" in path.name] == [saved.name]
