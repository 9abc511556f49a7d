"""Files that are whole or not there, also where Windows' rules are: a file that is open elsewhere, names of devices."""

import errno
import json
import ntpath
import os
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import pytest

from weblab_local import files
from weblab_local.files import windows_refuses
from weblab_local.home import read_settings, write_settings


class OpenElsewhere:
    """`os.replace` as on Windows while another program has a file open: it fails so many times."""

    def __init__(self, times: int, winerror: int | None) -> None:
        self.left = times
        self.tries = 0
        self._winerror = winerror
        self._replace: Callable[..., None] = os.replace

    def __call__(self, source: str, target: str) -> None:
        self.tries += 1
        if self.left:
            self.left -= 1
            error = PermissionError(errno.EACCES, "The process cannot access the file", source)
            if self._winerror is not None:
                error.winerror = self._winerror  # type: ignore[attr-defined]  # Windows only
            raise error
        self._replace(source, target)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "PAUSES", (0, 0, 0))
    write_settings({"model": "old"})
    (path,) = Path(os.environ["WEBLAB_LOCAL_HOME"]).iterdir()
    return path


@pytest.mark.parametrize("winerror", [5, 32])
def test_a_file_that_is_open_elsewhere_for_a_moment_is_replaced(
    settings: Path, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    replace = OpenElsewhere(3, winerror)
    monkeypatch.setattr(os, "replace", replace)
    write_settings({"model": "new"})
    assert (replace.tries, read_settings()) == (4, {"model": "new"})
    assert [path.name for path in settings.parent.iterdir()] == [settings.name]


@pytest.mark.parametrize(("winerror", "tries"), [(32, 4), (None, 1)], ids=["open elsewhere", "not allowed"])
def test_one_that_stays_open_or_is_not_ours_is_left_as_it_was(
    settings: Path, monkeypatch: pytest.MonkeyPatch, winerror: int | None, tries: int
) -> None:
    replace = OpenElsewhere(100, winerror)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError, match="cannot access the file"):
        write_settings({"model": "new"})
    assert replace.tries == tries
    assert json.loads(settings.read_text(encoding="utf-8")) == {"model": "old"}
    assert [path.name for path in settings.parent.iterdir()] == [settings.name]


DEVICES = ("CON", "nul", "Aux", "prn.txt", "COM1", "lpt9.weblab", "com\u00b2", "nul.tar.gz", "CONIN$", "con .weblab")


@pytest.mark.parametrize("name", [*DEVICES, "10:30", "a<b", "a>b", 'a"b', "a|b", "what?", "a*b", "a\tb", "a.", "a "])
def test_names_that_windows_refuses(name: str) -> None:
    assert windows_refuses(name)
    if name in DEVICES:
        assert _is_reserved(name)


@pytest.mark.parametrize(
    "name", ["last", "会議", "console", "a con", "com", "COM10", "nulla.weblab", ".con", "1つ目、2つ目"]
)
def test_names_that_it_takes(name: str) -> None:
    assert not windows_refuses(name)
    assert not _is_reserved(name)


def _is_reserved(name: str) -> bool:
    """What Python itself says."""
    return bool(ntpath.isreserved(name)) if hasattr(ntpath, "isreserved") else PureWindowsPath(name).is_reserved()
