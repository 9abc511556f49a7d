"""Where an interrupted pass of the reference goes on: the hidden states after its last finished layer, on disk."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import OutputError
from convert.source.checkpoint import Checkpoint, file_stamp
from weblab_local.files import written_whole

FORMAT = 1
"""Raised when the same checkpoint and sequences give other values than before, so that what was kept is not used."""

_OBSERVER = "observer."


def identity(checkpoint: Checkpoint, sequences: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    """What a result of the reference depends on, as JSON: config.json, the shards' stamps, adapters, the token ids."""
    ids = hashlib.sha256()
    for sequence in sequences:
        ids.update(len(sequence).to_bytes(8, "little") + sequence.astype("<i8").tobytes())
    adapters = {"adapters": [adapter.record for adapter in checkpoint.adapters]} if checkpoint.adapters else {}
    return adapters | {
        "format": FORMAT,
        "config": hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode()).hexdigest(),
        "shards": [file_stamp(checkpoint.folder / shard) for shard in checkpoint.shards],
        "sequences": ids.hexdigest(),
    }


@dataclass(frozen=True)
class Finished:
    """`layers` are done; `hidden` (n_tokens of all sequences, hidden_size) is what they gave."""

    layers: int
    hidden: NDArray[np.float32]
    observer: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class StateFile:
    """A numpy .npz archive, which has a checksum over each array. `key` is what the pass is of, as JSON."""

    path: Path
    key: str

    def save(self, finished: Finished) -> None:
        """Replace the file at once, or leave the older one. Raises OutputError when it cannot be written."""
        arrays: dict[str, Any] = {_OBSERVER + name: array for name, array in finished.observer.items()}
        arrays |= {"key": np.array(self.key), "layers": np.array(finished.layers), "hidden": finished.hidden}
        try:
            with written_whole(self.path) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise OutputError(
                f"The state of the reference cannot be written to {self.path}: {error}.",
                f"It takes {finished.hidden.nbytes / 1e6:.0f} MB, twice: free some space, or choose another folder.",
            ) from error

    def load(self) -> Finished | None:
        """What was saved; None where there is no file, a damaged one, or one of another pass."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                if archive.testzip() is not None:
                    return None
            with np.load(self.path, allow_pickle=False) as arrays:
                if str(arrays["key"]) != self.key:
                    return None
                observer = {name.removeprefix(_OBSERVER): arrays[name] for name in arrays if name.startswith(_OBSERVER)}
                return Finished(int(arrays["layers"]), arrays["hidden"], observer)
        except Exception:  # a damaged archive can make zipfile raise anything, RuntimeError and struct.error too
            return None

    def remove(self) -> None:
        """The pass is done."""
        self.path.unlink(missing_ok=True)
