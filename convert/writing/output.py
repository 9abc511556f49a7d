"""A GGUF that is finished or absent, and the manifest that lets anybody check it later."""

import json
import os
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from convert.errors import OutputError
from weblab_local.files import partial_path, read_json, rename, sync, sync_folder

MANIFEST_FORMAT = 1
"""Raised when the same source and mixture give other bytes than before, so that older outputs are made anew."""


class OutputFile:
    """A GGUF being written: header first, tensors at their offsets in any order and from any thread.

    `resume`: what an earlier run has written and kept stays where it is not written again.
    """

    def __init__(self, path: Path, size: int, resume: bool = False) -> None:
        self.path = path
        self.partial = partial_path(path)
        self._size = size
        self._kept = False
        self._file = self.partial.open("r+b" if resume else "wb", buffering=0)
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: bytes | NDArray[Any]) -> None:
        """Write all of `data` at `offset` bytes from the file's start."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
        with self._lock:
            self._file.seek(offset)
            while view:
                view = view[self._file.write(view) or 0 :]

    def flush(self) -> None:
        """What was written until now is on the disk."""
        os.fsync(self._file.fileno())

    def keep(self) -> None:
        """What was written stays when this run is given up, for one that goes on with it."""
        self._kept = True

    def close(self) -> None:
        """Everything is on the disk and the file has its full size; it still has its temporary name."""
        self._file.truncate(self._size)
        self._file.close()
        sync(self.partial)

    def publish(self) -> None:
        """Give the file and its staged manifest their final names; no manifest ever lies beside another file.

        Raises OSError. An older file that cannot be replaced keeps its manifest: Windows replaces none that is mapped.
        """
        older, aside = manifest_path(self.path), _set_aside(self.path)
        with suppress(FileNotFoundError):
            rename(older, aside)
        try:
            rename(self.partial, self.path)
        except OSError:
            with suppress(FileNotFoundError):
                rename(aside, older)
            raise
        aside.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        publish_manifest(self.path)

    def publish_beside(self) -> Path:
        """Give the file and its manifest a name that is free, ending in .new, which is returned. Raises OSError."""
        numbers = chain([""], count(2))
        names = (self.path.with_name(f"{self.path.stem}.new{number}.gguf") for number in numbers)
        path = next(name for name in names if not name.exists())
        manifest = read_json(_staged_manifest(self.path))
        stage_manifest(path, {**manifest, "output": {**manifest["output"], "name": path.name}})
        rename(self.partial, path)
        sync_folder(path.parent)
        publish_manifest(path)
        return path

    def keep_unverified(self) -> None:
        """Keep the file under a name that no program looks for, and no manifest with it."""
        rename(self.partial, unverified_path(self.path))

    def discard(self) -> None:
        """Remove what was written and has no final name yet, unless it is kept."""
        self._file.close()
        if not self._kept:
            remove_leftovers(self.path)


def remove_leftovers(gguf_path: Path) -> None:
    """Remove what a conversion to `gguf_path` that was killed has left behind; the finished file stays."""
    partial_path(gguf_path).unlink(missing_ok=True)
    _staged_manifest(gguf_path).unlink(missing_ok=True)
    _set_aside(gguf_path).unlink(missing_ok=True)
    rounding_state(gguf_path).unlink(missing_ok=True)


def rounding_state(gguf_path: Path) -> Path:
    """Where it is kept how far the rounding of `gguf_path` has come."""
    return gguf_path.with_name(gguf_path.name + ".rounding")


def unverified_path(path: Path) -> Path:
    """The name of `path` when its verification has failed."""
    return path.with_name(path.name + ".unverified")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this conversion alone. Raises OutputError when another one is writing there, or none can."""
    lock = FileLock(folder / ".weblab-local.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"Another conversion is writing to {folder}.", "Wait for it to end, or choose another --output."
        ) from None
    except OSError as error:
        raise OutputError(f"Cannot write to {folder}: {error}.", "Choose another --output.") from None
    try:
        yield
    finally:
        lock.release()


def manifest_path(gguf_path: Path) -> Path:
    """Where the manifest of a GGUF lies: beside it, with the suffix .json."""
    return gguf_path.with_suffix(".json")


def stage_manifest(gguf_path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of `gguf_path`, under a temporary name as yet."""
    staged = _staged_manifest(gguf_path)
    staged.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    sync(staged)


def publish_manifest(gguf_path: Path) -> None:
    """Give the staged manifest of `gguf_path` its final name."""
    rename(_staged_manifest(gguf_path), manifest_path(gguf_path))
    sync_folder(gguf_path.parent)


def _staged_manifest(gguf_path: Path) -> Path:
    return partial_path(manifest_path(gguf_path))


def _set_aside(gguf_path: Path) -> Path:
    """Where the manifest of the older file is while that is replaced."""
    manifest = manifest_path(gguf_path)
    return manifest.with_name(manifest.name + ".older")


def is_up_to_date(gguf_path: Path, source: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether `gguf_path` was made from this `source` by this `recipe` and still has the size it had then.

    `source` may leave out what cannot be known without fetching the checkpoint; what it names has to agree.
    """
    manifest = read_json(manifest_path(gguf_path))
    if not gguf_path.is_file() or manifest.get("format") != MANIFEST_FORMAT:
        return False
    recorded, written = manifest.get("source"), manifest.get("output")
    return (
        isinstance(recorded, dict)
        and isinstance(written, dict)
        and manifest.get("recipe") == dict(recipe)
        and all(_without_hashes(recorded.get(key)) == value for key, value in source.items())
        and written.get("size") == gguf_path.stat().st_size
    )


def _without_hashes(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_hashes(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "sha256"}
    return value


def tool_versions(packages: Sequence[str] = ("weblab-local", "llama-cpp-python", "gguf", "numpy", "torch")) -> Any:
    """Versions of what made the file, for the manifest."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
