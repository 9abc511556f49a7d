"""What the tests of outputs share: another file under the name, disks, ways to fail."""

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors.torch import load_file, save_file

from tests.support.conversions import files_in, start_convert

COMMIT = "0123456789abcdef0123456789abcdef01234567"


with_or_without_older = pytest.mark.parametrize("older", [False, True], ids=["first", "an older file is there"])


class Before:
    """A folder for results before a conversion that fails: empty, or with a finished file and its manifest."""

    def __init__(self, folder: Path, name: str, older: bool) -> None:
        self._folder = folder
        self._files = {f"{name}.gguf": b"an older file", f"{name}.json": b"{}"} if older else {}
        for file, content in self._files.items():
            (folder / file).write_bytes(content)

    def is_unchanged(self) -> bool:
        return {name: (self._folder / name).read_bytes() for name in files_in(self._folder)} == self._files


Disk = Callable[[int], Path]


def first_shard(checkpoint: Path) -> Path:
    return min(checkpoint.glob("*.safetensors"))


def in_pages(n_bytes: int) -> int:
    """The room that a file of so many bytes takes on a tmpfs."""
    page = os.sysconf("SC_PAGE_SIZE")
    return -(-n_bytes // page) * page


def identity(path: Path) -> tuple[int, int, int]:
    """Another one when the file was written to or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest_of(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_bytes().decode("utf-8"))


def failing_read(*_: object) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def no_reading(*_: object) -> NoReturn:
    raise AssertionError("The weights were read again.")


def in_the_middle_of(large: Path, folder: Path) -> "subprocess.Popen[str]":
    """`python -m convert`, which has written some of its output."""
    process = start_convert(large, "--output", folder, "--quant", "IQ4_XS", "--threads", "1", "--force")
    partial = folder / "large-IQ4_XS.gguf.partial"
    for _ in range(6000):
        try:
            process.wait(timeout=0.01)
            break
        except subprocess.TimeoutExpired:
            if partial.exists() and partial.stat().st_size > 1_000_000:  # of 11 MB; a third is the header
                return process
    process.kill()
    pytest.fail(f"There was no moment to interrupt the conversion: {process.communicate()[1]}")


def grow_the_shard(checkpoint: Path, _: Path) -> None:
    shard = first_shard(checkpoint)
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    save_file(load_file(shard), shard, {"format": "pt", "note": "larger"})
    os.utime(shard, ns=times)


def append(name: str, text: str) -> Callable[[Path, Path], None]:
    def change(checkpoint: Path, _: Path) -> None:
        with (checkpoint / name).open("a") as file:
            file.write(text)

    return change


def write_manifest(content: bytes) -> Callable[[Path, Path], None]:
    return lambda _, path: void(path.with_suffix(".json").write_bytes(content))


def edit_manifest(**fields: object) -> Callable[[Path, Path], None]:
    return lambda _, path: void(path.with_suffix(".json").write_text(json.dumps(manifest_of(path) | fields)))


def void(_: object) -> None:
    """Of a lambda that is called for its effect."""
