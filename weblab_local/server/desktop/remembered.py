"""What the app keeps from one start to the next, in the user's settings."""

from pathlib import Path
from typing import Any

from weblab_local.home import read_settings, write_settings
from weblab_local.models.store import demo_model, models_dir

_SECTION = "app"


def remembered_port() -> int:
    """The port of the last start, 0 where there is none.

    A browser keeps the conversations of each address apart: at another port they would seem to be lost.
    """
    port = _section().get("port")
    return port if isinstance(port, int) and 0 < port < 1 << 16 else 0


def remember_port(port: int) -> None:
    """Keep the port for the next start."""
    _remember("port", port)


def remembered_model() -> str | None:
    """The path of the model from outside of the store that was loaded last; None where there is none or it is gone."""
    path = _section().get("model")
    return path if isinstance(path, str) and Path(path).is_file() else None


def remember_model(path: Path) -> None:
    """Keep the path of a model for the next start, unless the store has it or it is the demo."""
    if path.parent != models_dir() and path != demo_model():
        _remember("model", str(path.absolute()))


def _section() -> dict[str, Any]:
    section = read_settings().get(_SECTION)
    return section if isinstance(section, dict) else {}


def _remember(key: str, value: object) -> None:
    if _section().get(key) != value:
        write_settings({**read_settings(), _SECTION: _section() | {key: value}})
