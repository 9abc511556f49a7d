"""What a conversion will do, known before the first byte is written: tensors, types, offsets, sizes, room needed."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.errors import CheckpointError, OutputError
from convert.model.gpt_neox import Hyperparameters, Tensor, hyperparameters, map_tensors
from convert.model.metadata import TensorEntry, header_bytes, tensor_table
from convert.model.vocab import Vocabulary, read_vocabulary
from convert.quantization.block_types import GRIDS
from convert.quantization.imatrix import ImatrixFile
from convert.quantization.mixtures import Mixture, tensor_types
from convert.source.checkpoint import Checkpoint
from convert.source.names import is_buffer
from convert.source.source import ModelCard
from convert.source.tensor_files import StoredTensor
from convert.source.tokenizer_files import tokenizer_json
from weblab_local.sizes import byte_count

CHUNK_WEIGHTS = 1 << 20
"""Weights that one worker quantizes at a time."""

_BASE_MEMORY = 600 * 10**6
_BYTES_PER_CHUNK_WEIGHT = 4 + 4 + 4


@dataclass(frozen=True)
class PlannedOutput:
    """One GGUF to be written: `header` comes first, then each tensor at `offset` from the header's end.

    `importance` weighs the columns of the tensors that an importance matrix has data for: float32 (n_columns,). It is
    the same for all outputs of a plan.
    """

    mixture: Mixture
    path: Path
    header: bytes
    tensors: Mapping[str, TensorEntry]
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        last = list(self.tensors.values())[-1]
        return len(self.header) + last.offset + last.nbytes

    def is_compensated(self, name: str) -> bool:
        """Whether the tensor is written when the inputs of its matrix are known: that matrix, or its bias."""
        matrix = self.tensors.get(f"{name.rpartition('.')[0]}.weight")
        return self.mixture.compensated and matrix is not None and matrix.ggml_type in GRIDS

    def position(self, name: str) -> int:
        """Where the tensor's data begins, in bytes from the file's start."""
        return len(self.header) + self.tensors[name].offset


@dataclass(frozen=True)
class Plan:
    """A conversion of one checkpoint to one or several outputs."""

    hparams: Hyperparameters
    vocabulary: Vocabulary
    card: ModelCard
    tensors: Sequence[Tensor]
    outputs: Sequence[PlannedOutput]
    n_threads: int
    imatrix: ImatrixFile | None = None

    def only(self, outputs: Sequence[PlannedOutput]) -> "Plan":
        """The same plan for some of its outputs."""
        return replace(self, outputs=outputs)

    @property
    def n_weights(self) -> int:
        """Parameters of the model."""
        return sum(_count(tensor.shape) for tensor in self.tensors)

    @property
    def without_importance(self) -> list[str]:
        """The matrices that the importance matrix has no data for."""
        known = self.imatrix.matrix.entries if self.imatrix else {}
        return [tensor.name for tensor in self.tensors if len(tensor.shape) == 2 and tensor.name not in known]

    @property
    def memory(self) -> int:
        """Bytes of memory needed that are not page cache, roughly."""
        return _BASE_MEMORY + 2 * self.n_threads * _BYTES_PER_CHUNK_WEIGHT * max(CHUNK_WEIGHTS, self._longest_row)

    @property
    def _longest_row(self) -> int:
        return max(tensor.shape[-1] for tensor in self.tensors)


def make_plan(
    checkpoint: Checkpoint,
    card: ModelCard,
    mixtures: Sequence[Mixture],
    output_folder: Path,
    n_threads: int | None = None,
    imatrix: ImatrixFile | None = None,
) -> Plan:
    """Plan the conversion from config.json, tokenizer.json, the tensors' names and an importance matrix.

    No weight is read. Raises ConversionError where these do not belong together.
    """
    hparams = hyperparameters(checkpoint.config)
    vocabulary = read_vocabulary(tokenizer_json(checkpoint.tokenizer_folder), hparams.vocab_size)
    names = [name for name in checkpoint.weight_map if not _is_unused_head(name, hparams)]
    tensors = map_tensors(hparams, names)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    importance = imatrix.importance(shapes) if imatrix else {}
    outputs = []
    for mixture in mixtures:
        types = tensor_types(mixture, shapes, hparams.num_hidden_layers, imatrix is not None)
        table = tensor_table(shapes, types)
        header = header_bytes(card, hparams, vocabulary, mixture, table, imatrix)
        path = output_folder / f"{card.name}-{mixture.name}.gguf"
        outputs.append(PlannedOutput(mixture, path, header, {entry.name: entry for entry in table}, importance))
    return Plan(hparams, vocabulary, card, tensors, outputs, n_threads or available_cores(), imatrix)


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_shard(
    checkpoint: Checkpoint, shard: str, stored: Mapping[str, StoredTensor], tensors: Sequence[Tensor]
) -> None:
    """Raise CheckpointError where the index and the shard disagree, or a tensor has not the shape config.json gives."""
    indexed = {name for name, file in checkpoint.weight_map.items() if file == shard and not is_buffer(name)}
    found = {name for name in stored if not is_buffer(name)}
    if indexed - found:
        raise CheckpointError(
            f"The index says that {shard} holds {min(indexed - found)}, but it does not.",
            "Index and shards are from different downloads: download the checkpoint again.",
        )
    if found - indexed:
        raise CheckpointError(
            f"The shard {shard} holds {min(found - indexed)}, which the index does not list there.",
            "Index and shards are from different downloads: download the checkpoint again.",
        )
    for tensor in tensors:
        if tensor.source in found and stored[tensor.source].data.shape != tensor.shape:
            raise CheckpointError(
                f"The tensor {tensor.source} has the shape {_shape(stored[tensor.source].data.shape)}, but config.json "
                f"means {_shape(tensor.shape)}.",
                "config.json and the shards belong to different models, or config.json was edited.",
            )


@dataclass(frozen=True)
class Room:
    """What a conversion needs and what there is, in bytes."""

    disk: int
    disk_free: int
    memory: int
    memory_available: int


def check_room(plan: Plan, output_folder: Path, extra_disk: int = 0, extra_memory: int = 0) -> Room:
    """Disk and memory needed against those there. Raises OutputError when they cannot suffice.

    `extra_disk` is what else will be written on the same file system, such as a shard that is yet to be downloaded,
    `extra_memory` what is needed besides quantizing.
    """
    disk = sum(output.size for output in plan.outputs) + extra_disk
    free = shutil.disk_usage(output_folder).free
    if disk > free:
        parts = f" ({byte_count(extra_disk)} to download, the rest for the result)" if extra_disk else ""
        raise OutputError(
            f"Not enough disk space in {output_folder}: {byte_count(disk)} needed{parts}, {byte_count(free)} free.",
            "Free some space, choose another --output, or a smaller --quant.",
        )
    available = psutil.virtual_memory().available
    memory = plan.memory + extra_memory
    if memory > available:
        raise OutputError(
            f"Not enough memory: about {byte_count(memory)} needed, {byte_count(available)} available.",
            "Close other programs, or "
            + ("choose --quant Q4_K_M (make convert QUANT=Q4_K_M)." if extra_memory else "use fewer --threads."),
        )
    return Room(disk, free, memory, available)


def stores_as(source: StoredTensor, ggml_type: GGMLQuantizationType) -> bool:
    """Whether the values of `source` are stored as `ggml_type` already, bit for bit."""
    return source.dtype == ggml_type.name and not source.added


def _is_unused_head(name: str, hparams: Hyperparameters) -> bool:
    return name == "embed_out.weight" and hparams.tie_word_embeddings


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
