"""What the tests of downloads share: a Hub that watches, a user with a cache, what they made."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from convert.run import Request, run
from tests.support.hub_server import HubServer, environment

ROOT = Path(__file__).parents[4]
MIB = 1 << 20
CHUNK = 10 * MIB
"""What huggingface_hub writes to disk at a time (constants.DOWNLOAD_CHUNK_SIZE)."""

TINY = "org/tiny"
OUTPUT = "tiny-Q8_0.gguf"
README = "---\nlicense: apache-2.0\nlanguage:\n- ja\n- en\n---\n# Tiny\n"
INDEX = "model.safetensors.index.json"
OTHERS = ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "onnx/config.json", "logo.png", "training_args.bin")
PROGRAM = (
    "import os, runpy, shutil, signal, time, types; signal.signal(signal.SIGINT, signal.default_int_handler); {};"
    "runpy.run_module('convert', run_name='__main__')"
)
"""Heeds Ctrl-C also where the tests run in the background of a shell, whose children inherit SIGINT as ignored."""
WITHOUT_PAUSES = "time.sleep = lambda seconds: None"
KILLED_ON_RETRY = "time.sleep = lambda seconds: os.kill(os.getpid(), signal.{})"
ALMOST_FULL = "shutil.disk_usage = lambda path: types.SimpleNamespace(free=1_000_000)"
CACHE_AND_LOW_DISK = pytest.mark.parametrize("option", [[], ["--low-disk"]], ids=["cache", "low disk"])


class Hub(HubServer):
    """A stand-in that calls `watch` with the name of each file that it is about to send."""

    def __init__(self) -> None:
        super().__init__()
        self.watch: Callable[[str], object] = str

    def __enter__(self) -> Hub:
        super().__enter__()
        return self

    def take_cut(self, length: int) -> int:
        self.watch(self.requests[-1].path.rpartition("/")[2])
        return super().take_cut(length)

    def cut_at(self, shard: str) -> None:
        """Break off `shard` after its first chunk."""

        def cut(name: str) -> None:
            self.cut_after = CHUNK + MIB if name == shard else None

        self.watch = cut

    def hang_up(self, after: int) -> None:
        """Break off the file that is being sent after so many bytes, and refuse all connections from now on."""
        self._http.shutdown()
        self._http.socket.close()
        self.cut_after = after

    @property
    def fetched(self) -> list[str]:
        """The files that were asked for with GET, by their paths in the repository."""
        files = (request for request in self.requests if request.method == "GET" and "/resolve/" in request.path)
        return [re.sub(".*/resolve/[^/]+/", "", request.path) for request in files if request.status != 302]

    @property
    def fetched_shards(self) -> list[str]:
        return [name for name in self.fetched if name.endswith((".safetensors", ".bin"))]

    def ranges(self, shard: str) -> list[str | None]:
        """The Range of each GET for a shard."""
        return [request.range for request in self.downloads(shard)]


@dataclass
class User:
    """Somebody with a Hub cache in `home` who converts into the folder `output`."""

    home: Path
    output: Path

    def convert(
        self, hub: HubServer, *arguments: str, source: str = TINY, before: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m convert`; `before` is Python to run first, `settings` are for the environment."""
        program = ["-c", PROGRAM.format(before)] if before else ["-m", "convert"]
        return subprocess.run(
            [sys.executable, *program, source, "--output", str(self.output), "--quant", "Q8_0", *arguments],
            env=environment(hub, self.home) | {"PYTHONPATH": str(ROOT)} | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def gets(self, hub: HubServer, *arguments: str, **kw: str) -> Path:
        """Convert and succeed; the one path that is all of stdout."""
        done = self.convert(hub, *arguments, **kw)
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.removesuffix("\n"))
        assert path.is_file(), done.stdout
        return path

    def is_told(self, hub: HubServer, *arguments: str, **kw: str) -> str:
        """Convert and fail with exit code 1; the message. Nothing was made, replaced or printed on stdout."""
        before = self.has
        done = self.convert(hub, *arguments, **kw)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        assert self.has == before
        return done.stderr[done.stderr.index("convert: ") :]

    def is_cut_off(self, hub: HubServer, *arguments: str, by: str, code: int) -> str:
        """Convert and be ended by a signal at the first retry; what was on stderr. Nothing was made or printed."""
        done = self.convert(hub, *arguments, before=KILLED_ON_RETRY.format(by))
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert not (self.output / OUTPUT).exists()
        return done.stderr

    @property
    def has(self) -> dict[str, bytes]:
        """The files in the output folder by name, without the hidden ones: the lock and a download that was kept."""
        return {path.name: path.read_bytes() for path in self.output.glob("[!.]*")}

    @property
    def low_disk_folder(self) -> list[str]:
        """The weights, whole or in part, in a folder for --low-disk."""
        return sorted(path.name for path in self.output.glob(".download-*/*.safetensors*") if path.name != INDEX)

    @property
    def cache(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of all that is in the Hub's cache."""
        found = {path.relative_to(self.home).as_posix(): path.stat() for path in self.home.rglob("*") if path.is_file()}
        return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}

    def snapshot(self, commit: str) -> Path:
        return self.home / "hub" / "models--org--tiny" / "snapshots" / commit


@dataclass
class Conversion:
    """One that went well, for all the tests that only look at it."""

    hub: Hub
    commit: str
    user: User
    stdout: str
    stderr: str
    fetched: list[str]

    @property
    def gguf(self) -> Path:
        return self.user.output / OUTPUT

    def copy(self, folder: Path) -> User:
        """A user in the same state, with whom a test may do what it likes."""
        user = User(folder / "home", folder / "models")
        shutil.copytree(self.user.home, user.home, symlinks=True)
        shutil.copytree(self.user.output, user.output)
        return user


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model*.safetensors"))


def tensors(path: Path) -> dict[str, tuple[Any, ...]]:
    return {t.name: (t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in GGUFReader(path).tensors}


def metadata(path: Path, key: str) -> Any:
    field = GGUFReader(path).get_field(key)
    return field and field.contents()


def revision(path: Path) -> Any:
    return metadata(path, "weblab_local.source.revision")


def gguf_of(folder: Path, output: Path) -> Path:
    """The GGUF of a folder, made without the Hub."""
    return run(Request(str(folder), None, ["Q8_0"], output))[0]


def source(path: Path) -> dict[str, Any]:
    """What the manifest of a GGUF says about its source, the shards as SHA-256 by name."""
    recorded = json.loads(path.with_suffix(".json").read_text())["source"]
    return {**recorded, "shards": {shard["name"]: shard["sha256"] for shard in recorded["shards"]}}


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in shards(folder)}
