"""GGUF files whose header was changed, and what becomes of a process that loads them.

A process of its own loads one file after the other and generates two tokens of each, until a file ends it; then the
next one goes on. So a file that is refused costs milliseconds, and one that ends the process is known by name.
"""

import contextlib
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFReader

from tests.support.conversions import ROOT

TYPES = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8}
TYPES |= {"u64": 10, "i64": 11, "f64": 12}
_FORMATS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B"}
_FORMATS |= {"u64": "Q", "i64": "q", "f64": "d"}
_ARRAY = 9
_ALIGNMENT = 32
_SAID = ("works", "refused", "raises")

NAN, INFINITY = float("nan"), float("inf")


class Value(NamedTuple):
    """A value of a header: its type, "[str]" and so on for arrays, and itself; texts are bytes or text."""

    type: str
    value: Any


class Changed(NamedTuple):
    """One change of a header: the key's value is another, or (None) the key is gone."""

    key: str
    value: Value | None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.key}: gone"
        text = repr(self.value.value)
        return f"{self.key}: {self.value.type} {text if len(text) < 60 else f'{text[:50]}... ({len(text)})'}"


def values(path: Path) -> Mapping[str, Value]:
    """What the header of a GGUF says, by gguf's own reader."""
    names = {number: name for name, number in TYPES.items()}
    found = {}
    for key, field in GGUFReader(path).fields.items():
        if not key.startswith("GGUF."):
            types = [names.get(int(kind), "") for kind in field.types]
            found[key] = Value(f"[{types[-1]}]" if field.types[0] == _ARRAY else types[0], field.contents())
    return found


def write_changed(path: Path, target: Path, changes: Sequence[Changed]) -> None:
    """A copy of `path` with these values in its header, and all else as it was."""
    whole = _parts(path)
    fields = dict(whole.fields)
    for key, value in changes:
        fields.pop(key, None)
        if value is not None:
            fields[key] = _text(key) + _packed(value)
    start = b"GGUF" + struct.pack("<IQQ", 3, whole.n_tensors, len(fields)) + b"".join(fields.values()) + whole.table
    target.write_bytes(start + bytes(-len(start) % _ALIGNMENT) + whole.data)


class _Parts(NamedTuple):
    """The bytes of a GGUF: of each key with its value, of the table of tensors, and of the weights."""

    fields: Mapping[str, bytes]
    n_tensors: int
    table: bytes
    data: bytes


@cache
def _parts(path: Path) -> _Parts:
    reader = GGUFReader(path)
    fields = {
        key: b"".join(part.tobytes() for part in field.parts)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    table = b"".join(part.tobytes() for tensor in reader.tensors for part in tensor.field.parts)
    return _Parts(fields, len(reader.tensors), table, path.read_bytes()[reader.data_offset :])


def _packed(value: Value) -> bytes:
    kind = value.type.strip("[]")
    if kind == value.type:
        return struct.pack("<I", TYPES[kind]) + _element(kind, value.value)
    elements = b"".join(_element(kind, element) for element in value.value)
    return struct.pack("<IIQ", _ARRAY, TYPES[kind], len(value.value)) + elements


def _element(kind: str, value: Any) -> bytes:
    return _text(value) if kind == "str" else struct.pack(f"<{_FORMATS[kind]}", value)


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def outcomes(path: Path, folder: Path, cases: Iterable[Sequence[Changed]], patience: float = 60) -> Iterator[str]:
    """What becomes of each changed copy of `path`: "works", or "refused: ..." with the error; else the process's end.

    A process that says nothing for `patience` seconds is ended, and "hangs".
    """
    target = folder / "changed.gguf"
    process: _Process | None = None
    for changes in cases:
        write_changed(path, target, changes)
        process = process or _Process()
        outcome = process.outcome(target, patience)
        yield outcome
        if not outcome.startswith(_SAID):
            process = None
    if process is not None:
        process.end()


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOADS],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")

    def outcome(self, path: Path, patience: float) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            self.end()
            return "hangs"
        if line.startswith(_SAID):
            return line
        self.end()
        return f"ends the process: {self._process.returncode}"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


_LOADS = """
import sys
from weblab_local import SamplingParams, WeblabError, load
for line in sys.stdin:
    try:
        with load(line.strip(), n_ctx=256, n_threads=1) as model:
            model.generate("Hello 日本", SamplingParams(temperature=0, max_tokens=2))
            model.generate("Hello", SamplingParams(seed=1, max_tokens=2))
        print("works", flush=True)
    except WeblabError as error:
        print("refused:", type(error).__name__, str(error).replace(chr(10), " ")[:200], flush=True)
    except BaseException as error:
        print("raises", repr(error)[:200], flush=True)
"""
