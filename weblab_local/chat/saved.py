"""Conversations on disk: the messages and, if wanted, the KV state, so that nothing has to be read again.

A session file is a zip archive: `session.json`, and `kv.bin` where the state was saved. It is keyed by the model's
fingerprint and the state also by the build of llama.cpp and the KV cache's settings, since llama.cpp would not survive
a state that does not fit. zip's checksums find damage before llama.cpp sees it.
"""

import hashlib
import json
import mmap
import struct
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from weblab_local.chat.session import ChatSession
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.files import PRIVATE_FOLDER, private_folder, private_scratch, written_whole
from weblab_local.home import data_dir
from weblab_local.i18n import _

SESSION, STATE = "session.json", "kv.bin"

_SAMPLES, _SAMPLE_BYTES = 64, 4096
_BLOCK = 1 << 20

_NAME_LENGTH = 26
"""Where a local file header of a zip has the lengths of its name and its extra field, two 16-bit numbers that end it
(PKWARE's APPNOTE, 4.3.7); the data begin after those two."""


class SessionError(WeblabError):
    """A session file is damaged, or belongs to another model."""


@dataclass(frozen=True)
class LoadedSession:
    """A conversation from disk. `tokens_restored` of it are in the KV cache already, the rest will be read."""

    chat: ChatSession
    tokens_restored: int


def sessions_folder() -> Path:
    """Where the conversations are that were saved under a name."""
    return data_dir() / "sessions"


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
    """Write `chat` to `path`, whole or not at all, for this user alone; SessionError says why not.

    `with_state` adds the KV state (700 KB a token for the 10B). It goes through a file beside `path`, not through
    memory, so the disk needs room for it twice meanwhile.
    """
    try:
        _write(chat, path, chat.prompt_ids() if with_state else [])
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have, a text that no UTF-8 can hold
        raise SessionError(
            _("The conversation cannot be saved to {path}: {error}.").format(path=path, error=error),
            _("Choose another place."),
        ) from None


def _write(chat: ChatSession, path: Path, ids: Sequence[int]) -> None:
    if path.parent == sessions_folder():
        private_folder(path.parent)
    else:
        path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    with ExitStack() as stack:
        partial = stack.enter_context(written_whole(path, private=True))
        state = stack.enter_context(private_scratch(partial.with_suffix(".kvstate")))
        archive = stack.enter_context(zipfile.ZipFile(partial, "w"))
        n_saved = chat.engine.save_prefix(ids, state) if ids else 0
        session = {
            "model": {"name": chat.engine.name, "fingerprint": fingerprint(chat.engine.path)},
            "state": {"tokens": n_saved, **_state_key(chat.engine)} if n_saved else None,
            "chat": chat.to_dict(),
        }
        archive.writestr(SESSION, json.dumps(session, ensure_ascii=False, indent=1))
        if n_saved:
            archive.write(state, STATE)


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
                path=path, name=name, loaded=engine.name
            ),
            _("Load that model to go on with it (--model {name}).").format(name=name),
        )
    loaded = ChatSession.from_dict(engine, chat, params)
    return LoadedSession(loaded, _restore(engine, loaded, session.get("state"), state))


def _read(path: Path) -> tuple[Mapping[str, Any], memoryview]:
    """The session's JSON and its KV state, which stays in the file: memory-mapped, and empty where there is none."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:  # what is stored here is not compressed
                raise ValueError(_("it would unpack to {n} bytes").format(n=unpacked))
            session = json.loads(archive.read(SESSION))
            state = _mapped(file, archive) if STATE in archive.namelist() else memoryview(b"")
    except FileNotFoundError:
        raise SessionError(_("There is no session {path}.").format(path=path)) from None
    except Exception as error:  # zipfile, its decompressors and json raise many kinds over a damaged file
        raise SessionError(
            _("{path} is damaged, or no session of this program: {error}.").format(path=path, error=error)
        ) from None
    if not isinstance(session, dict):
        raise SessionError(_("{path} is no session of this program.").format(path=path))
    return session, state


def _mapped(file: BinaryIO, archive: zipfile.ZipFile) -> memoryview:
    """The KV state of an archive, mapped into memory once its checksum was found right.

    Raises what zipfile raises over damage, ValueError for a state that is compressed.
    """
    with archive.open(STATE) as member:
        while member.read(_BLOCK):
            pass
    info = archive.getinfo(STATE)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(_("its KV state is compressed"))
    file.seek(info.header_offset + _NAME_LENGTH)
    n_name, n_extra = struct.unpack("<HH", file.read(4))
    start = info.header_offset + _NAME_LENGTH + 4 + n_name + n_extra
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped)[start : start + info.file_size]


def _restore(engine: Engine, chat: ChatSession, key: Any, state: memoryview) -> int:
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
