"""A checkpoint's weights as float32 torch tensors, each read from its shard when it is asked for."""

from contextlib import ExitStack
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from convert.model.gpt_neox import Hyperparameters, map_tensors
from convert.source.checkpoint import Checkpoint
from convert.source.tensor_files import StoredTensor
from convert.writing.plan import check_shard

CHUNK_WEIGHTS = 1 << 22
"""Weights that are turned to float32 at a time: what that needs besides its result is at most 32 MB."""


class Weights:
    """The weights of a checkpoint by their GGUF names, in the checkpoint's layout; a context manager.

    A shard is opened when its first tensor is read, and stays open: a memory map takes no memory of the process's own.
    """

    def __init__(self, checkpoint: Checkpoint, hparams: Hyperparameters, device: torch.device) -> None:
        self.device = device
        self._checkpoint = checkpoint
        self._tensors = {tensor.name: tensor for tensor in map_tensors(hparams, checkpoint.weight_map)}
        self._open: dict[str, dict[str, StoredTensor]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Weights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.close()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a weight, all of it by default: (rows, columns) or (values,).

        Raises CheckpointError where the shard is damaged, or is not what index and config.json say.
        """
        stored = self._stored(name)
        first, last, _ = slice(start, stop).indices(len(stored.data))
        weights = torch.empty((last - first, *stored.data.shape[1:]))
        rows = weights.numpy()
        step = max(1, CHUNK_WEIGHTS // stored.data[:1].size)
        for at in range(first, last, step):
            rows[at - first : at - first + step] = stored.read(slice(at, min(at + step, last)))
        return weights.to(self.device)

    def gather(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """These rows of a matrix: (len(rows), columns)."""
        stored = self._stored(name)
        return torch.from_numpy(np.array(stored.read(rows))).to(self.device)

    def layer(self, number: int, matrices: bool = True) -> dict[str, torch.Tensor]:
        """All weights of a layer by their names in it ("attn_qkv.weight"), without biases that it has not.

        Without `matrices`, vectors alone.
        """
        prefix = f"blk.{number}."
        return {
            name.removeprefix(prefix): self.read(name)
            for name, tensor in self._tensors.items()
            if name.startswith(prefix) and tensor.source is not None and (matrices or len(tensor.shape) == 1)
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self._tensors[name].shape

    def _stored(self, name: str) -> StoredTensor:
        source = self._tensors[name].source
        if source is None:
            raise KeyError(f"{name} is not in the checkpoint")
        shard = self._checkpoint.weight_map[source]
        if shard not in self._open:
            stored = self._stack.enter_context(self._checkpoint.open_shard(shard))
            check_shard(self._checkpoint, shard, stored, list(self._tensors.values()))
            self._open[shard] = stored
        return self._open[shard][source]
