"""This user's data directory, and the settings in it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from weblab_local.files import read_json, written_whole


def data_dir() -> Path:
    """This user's data directory: $WEBLAB_LOCAL_HOME, or the operating system's place for it."""
    home = os.environ.get("WEBLAB_LOCAL_HOME")
    return Path(home).expanduser() if home else platformdirs.user_data_path("weblab-local", appauthor=False)


def with_home(path: str | Path) -> Path:
    """`path` with ~ and ~user as the home they stand for, and as it is where there is none of that name."""
    try:
        return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises where there is no such user)
    except ValueError:  # half of a surrogate pair, or a NUL
        return Path(path)


def read_settings() -> dict[str, Any]:
    """This user's settings: the default model, and what `bench --save` found best. {} where there are none."""
    return read_json(_settings_path())


def write_settings(settings: Mapping[str, Any]) -> None:
    """Replace the settings, whole or not at all."""
    path = _settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _settings_path() -> Path:
    return data_dir() / "settings.json"
