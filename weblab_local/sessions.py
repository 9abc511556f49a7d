"""Conversations on disk: the messages and, if wanted, the KV state, so that nothing has to be read again.

A session file is a zip archive: `session.json`, and `kv.bin` where the state was saved. It is keyed by the model's
fingerprint and the state also by the build of llama.cpp and the KV cache's settings, since llama.cpp would not survive
a state that does not fit. zip's checksums find damage before llama.cpp sees it.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from weblab_local.chat import ChatSession
from weblab_local.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.sampling import SamplingParams

SESSION, STATE = "session.json", "kv.bin"

_SAMPLES, _SAMPLE_BYTES = 64, 4096


class SessionError(WeblabError):
    """A session file is damaged, or belongs to another model."""


@dataclass(frozen=True)
class LoadedSession:
    """A conversation from disk. `tokens_restored` of it are in the KV cache already, the rest will be read."""

    chat: ChatSession
    tokens_restored: int


def fingerprint(path: Path) -> str:
    """Tells models apart without reading 6 GB: SHA-256 of the file's size, its first MiB and samples up to its end."""
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        for sample in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def save_session(chat: ChatSession, path: Path, *, with_state: bool = False) -> None:
    """Write `chat` to `path`, whole or not at all; SessionError says why not.

    `with_state` adds the KV state (700 KB a token for the 10B).
    """
    ids = chat.prompt_ids()
    n_saved, state = chat.engine.save_prefix(ids) if with_state and ids else (0, b"")
    partial = path.with_name(path.name + ".partial")
    try:
        session = {
            "model": {"name": chat.engine.path.stem, "fingerprint": fingerprint(chat.engine.path)},
            "state": {"tokens": n_saved, **_state_key(chat.engine)} if n_saved else None,
            "chat": chat.to_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(SESSION, json.dumps(session, ensure_ascii=False, indent=1))
                if n_saved:
                    archive.writestr(STATE, state)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise SessionError(
            _("The conversation cannot be saved to {path}: {error}.").format(path=path, error=error),
            _("Choose another place."),
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def load_session(engine: Engine, path: Path, params: SamplingParams | None = None) -> LoadedSession:
    """Read a conversation that was held with the same model. Raises SessionError with the reason when it cannot be."""
    session, state = _read(path)
    try:
        model, chat = session["model"], session["chat"]
        name, key = str(model["name"]), model["fingerprint"]
    except (KeyError, TypeError) as error:
        raise SessionError(
            _("{path} is no session of this program: {error!r} is missing.").format(path=path, error=error)
        ) from None
    if key != fingerprint(engine.path):
        raise SessionError(
            _("{path} was held with another model, {name}; this one is {loaded}.").format(
                path=path, name=name, loaded=engine.path.stem
            ),
            _("Load that model to go on with it (--model {name}).").format(name=name),
        )
    loaded = ChatSession.from_dict(engine, chat, params)
    return LoadedSession(loaded, _restore(engine, loaded, session.get("state"), state))


def _read(path: Path) -> tuple[Mapping[str, Any], bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:  # what is stored here is not compressed
                raise ValueError(_("it would unpack to {n} bytes").format(n=unpacked))
            session = json.loads(archive.read(SESSION))
            state = archive.read(STATE) if STATE in archive.namelist() else b""
    except FileNotFoundError:
        raise SessionError(_("There is no session {path}.").format(path=path)) from None
    except Exception as error:  # zipfile, its decompressors and json raise many kinds over a damaged file
        raise SessionError(
            _("{path} is damaged, or no session of this program: {error}.").format(path=path, error=error)
        ) from None
    if not isinstance(session, dict):
        raise SessionError(_("{path} is no session of this program.").format(path=path))
    return session, state


def _restore(engine: Engine, chat: ChatSession, key: Any, state: bytes) -> int:
    """Put the saved KV state back if it fits this build and these settings; the tokens it holds."""
    if not isinstance(key, dict) or not state:
        return 0
    n_tokens = key.get("tokens")
    ids = chat.prompt_ids()
    if {**key, "tokens": 0} != {"tokens": 0, **_state_key(engine)} or not isinstance(n_tokens, int):
        return 0
    if not 0 < n_tokens <= len(ids) or not engine.restore_prefix(ids[:n_tokens], state):
        return 0
    return n_tokens


def _state_key(engine: Engine) -> dict[str, Any]:
    return {"build": version("llama-cpp-python"), "kv_type": engine.kv_type, "settings": engine.kv_settings}
