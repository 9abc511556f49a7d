"""The small files of a checkpoint, read as JSON; and files that git-lfs left in the place of others."""

import json
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError

AGAIN = "Download the checkpoint again, or check that it was copied whole."

_POINTER = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises CheckpointError when it is missing, damaged or no object."""
    try:
        content = path.read_bytes()
        require_no_pointer(path)
        value = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing in {path.parent}.", AGAIN) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}.", AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object.", AGAIN)
    return value


def require_no_pointer(path: Path) -> None:
    """Raise CheckpointError when `path` is what git leaves where the file itself is kept by git-lfs."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is a pointer of git-lfs, not the file itself: the repository was cloned without git-lfs.",
                f"Type `git lfs install` and then `git lfs pull` in {path.parent}, or give the Hub id, owner/name.",
            )
