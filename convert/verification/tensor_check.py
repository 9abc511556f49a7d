"""Every tensor of a GGUF, dequantized, against the checkpoint's: which differ by more than their type can explain.

    error of a tensor = |found - expected| / |expected|       Euclidean norms over all its weights

The same for each block of the type alone, so that one spoiled block in millions is seen: zeros instead of it have an
error of 1, other weights 1.4.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, ReaderTensor
from numpy.typing import NDArray

from convert.model.gpt_neox import Hyperparameters, Tensor
from convert.model.metadata import MIXTURE_KEY
from convert.quantization.dequantize import block_size, dequantize_rows
from convert.source.checkpoint import Checkpoint
from convert.source.tensor_files import Rows, StoredTensor
from convert.writing.plan import CHUNK_WEIGHTS

Progress = Callable[[int, int], None]
"""Called with the bytes of the GGUFs that were compared and those in all."""


@dataclass(frozen=True)
class Precision:
    """What a type loses at most: relative errors of a `tensor` and of a `block`, and a root mean square `floor`.

    The floor is for blocks of tiny weights: their scale is kept in fp16, whose step is 6e-8 there, and is multiplied
    with the largest code (in K-quants also with the scale's own code).
    """

    tensor: float
    block: float
    floor: float


_STEP = 2.0**-24

PRECISION: Mapping[T, Precision] = {
    T.F32: Precision(1e-6, 1e-6, 0.0),
    T.F16: Precision(5e-4, 1e-3, _STEP),
    T.BF16: Precision(4e-3, 8e-3, 0.0),
    T.Q8_0: Precision(0.015, 0.1, 127 * _STEP),
    T.Q6_K: Precision(0.05, 0.3, 128 * 32 * _STEP),
    T.Q5_K: Precision(0.09, 0.5, 63 * 31 * _STEP),
    T.Q5_1: Precision(0.09, 0.6, 31 * _STEP),
    T.Q5_0: Precision(0.13, 0.6, 16 * _STEP),
    T.Q4_K: Precision(0.17, 0.7, 63 * 15 * _STEP),
    T.IQ4_XS: Precision(0.18, 0.7, 32 * 127 * _STEP),
    T.IQ4_NL: Precision(0.18, 0.9, 127 * _STEP),
    T.Q4_1: Precision(0.19, 0.9, 15 * _STEP),
    T.Q4_0: Precision(0.22, 0.9, 8 * _STEP),
    T.Q3_K: Precision(0.31, 0.8, 32 * 4 * _STEP),
}
"""Limits by type. Measured on gaussian, Laplace, Student-t (3 degrees of freedom) and uniform weights, on gaussian ones
with columns of very different sizes, and on the matrices of two trained models, each with and without an importance
matrix of a wide spread. `tensor` is about one and a half times the largest error of any of them (twice that of
gaussian weights or more), `block` two to seven times the largest of any block, and always less than the 1 of a block
of zeros. F16 and BF16: half a unit in the last place is 2^-11 and 2^-8."""

BIAS_SHIFT = 0.25
"""By how much a matrix's biases in a compensated mixture may differ, relative to the matrix's own norm.

Ten times the largest of the demo, 0.026. A bias that is wrong by less shows in the divergence.
"""


@dataclass(frozen=True)
class TensorError:
    """What the comparison of one tensor found. `error` is relative; `message` names what is wrong, "" if nothing.

    `distance` is |found - expected|, `length` is |expected|.
    """

    name: str
    ggml_type: T
    n_weights: int
    error: float
    message: str
    distance: float = float("nan")
    length: float = float("nan")


def check_tensors(
    checkpoint: Checkpoint,
    hparams: Hyperparameters,
    tensors: Sequence[Tensor],
    readers: Sequence[GGUFReader],
    n_threads: int,
    progress: Progress | None = None,
) -> list[list[TensorError]]:
    """Compare the `tensors` of each opened GGUF with the checkpoint's, in the order of `readers` and `tensors`.

    A tensor's turn comes for all files together, so that the checkpoint is read once. Memory is bounded by a chunk of
    rows for each thread. Raises CheckpointError for a damaged shard.
    """
    files = [{tensor.name: tensor for tensor in reader.tensors} for reader in readers]
    found: list[dict[str, TensorError]] = [{} for _ in files]
    total = sum(int(tensor.n_bytes) for file in files for tensor in file.values())
    done = 0
    with ThreadPoolExecutor(n_threads, thread_name_prefix="compare") as pool:
        for shard in checkpoint.shards:
            with checkpoint.open_shard(shard) as stored:
                jobs: list[tuple[int, Future[TensorError], int]] = []
                for tensor in tensors:
                    at = checkpoint.shards[0] if tensor.source is None else checkpoint.weight_map[tensor.source]
                    if at != shard:
                        continue
                    source = stored[tensor.source] if tensor.source is not None else _zeros(tensor.shape)
                    for number, file in enumerate(files):
                        held = file.get(tensor.name)
                        size = 0 if held is None else int(held.n_bytes)
                        jobs.append((number, pool.submit(_check_tensor, tensor, source, held, hparams), size))
                for number, job, size in jobs:
                    result = job.result()
                    found[number][result.name] = result
                    done += size
                    if progress is not None:
                        progress(done, total)
    for reader, by_name in zip(readers, found, strict=True):
        if MIXTURE_KEY in reader.fields:
            _allow_shifted_biases(by_name)
    return [[by_name[tensor.name] for tensor in tensors] for by_name in found]


def _allow_shifted_biases(found: dict[str, TensorError]) -> None:
    """Biases of a compensated mixture take back what rounding their matrix, and those before, did to a mean output."""
    for name, error in found.items():
        matrix = found.get(name.removesuffix("bias") + "weight")
        if matrix is not None and matrix.ggml_type != T.F32 and error.distance <= BIAS_SHIFT * matrix.length:
            found[name] = replace(error, error=0.0, message="")


def _zeros(shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor("F32", np.zeros(shape, np.float32))


def _check_tensor(
    tensor: Tensor, source: StoredTensor, held: ReaderTensor | None, hparams: Hyperparameters
) -> TensorError:
    if held is None:
        return TensorError(tensor.name, T.F32, 0, float("nan"), f"{tensor.name} is missing.")
    ggml_type = T(held.tensor_type)
    n_weights = int(np.prod(tensor.shape))
    shape = tuple(int(size) for size in reversed(held.shape))
    if shape != tensor.shape:
        message = f"{tensor.name} has the shape {shape}, and the checkpoint gives {tensor.shape}."
        return TensorError(tensor.name, ggml_type, n_weights, float("nan"), message)
    if ggml_type not in PRECISION:
        message = f"{tensor.name} has the type {ggml_type.name}, whose precision is not known here."
        return TensorError(tensor.name, ggml_type, n_weights, float("nan"), message)
    comparison = _Comparison(tensor, ggml_type)
    for start, expected in _expected_rows(tensor, source):
        comparison.add(start, expected, _found_rows(held, ggml_type, start, start + len(expected)))
    message = comparison.message()
    if message and tensor.name.endswith("attn_qkv.weight"):
        message += _misplaced_heads(tensor, source, held, ggml_type, hparams, comparison.bad_rows)
    return TensorError(
        tensor.name, ggml_type, n_weights, comparison.error, message, comparison.distance, comparison.length
    )


def _expected_rows(tensor: Tensor, source: StoredTensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First row and float32 rows (n_rows, n_columns) of what the GGUF should hold, in chunks; a vector is one row."""
    if len(tensor.shape) == 1:
        yield 0, source.read(slice(None) if tensor.row_order is None else tensor.row_order).reshape(1, -1)
        return
    step = max(1, CHUNK_WEIGHTS // tensor.shape[1])
    for start in range(0, tensor.shape[0], step):
        rows: Rows = slice(start, start + step)
        if tensor.row_order is not None:
            rows = tensor.row_order[start : start + step]
        yield start, source.read(rows)


def _found_rows(held: ReaderTensor, ggml_type: T, start: int, stop: int) -> NDArray[np.float32]:
    data = held.data.view(np.uint8)
    return dequantize_rows(data.reshape(1, -1) if len(held.shape) == 1 else data[start:stop], ggml_type)


class _Comparison:
    """Sums of squares over the chunks of a tensor, and which of its blocks are wrong."""

    def __init__(self, tensor: Tensor, ggml_type: T) -> None:
        self._tensor = tensor
        self._ggml_type = ggml_type
        self._precision = PRECISION[ggml_type]
        # Types without blocks are judged row by row.
        self._width = block_size(ggml_type) if block_size(ggml_type) > 1 else tensor.shape[-1]
        self._squared_error = 0.0
        self._squared = 0.0
        self._n_blocks = 0
        self._n_bad = 0
        self._n_zero = 0
        self._first_bad: tuple[int, int] | None = None
        self.bad_rows = np.zeros(tensor.shape[0] if len(tensor.shape) > 1 else 1, np.bool_)

    def add(self, start: int, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Compare rows from `start` on."""
        n_rows = len(expected)
        blocks = expected.reshape(n_rows, -1, self._width)
        found = found.reshape(blocks.shape)
        error = _sum_of_squares(found - blocks)
        squared = _sum_of_squares(blocks)
        precision = self._precision
        allowed = np.maximum(precision.block**2 * squared, precision.floor**2 * self._width)
        bad = ~(error <= allowed)  # this way round for not-a-number
        if bad.any():
            rows, columns = np.nonzero(bad)
            if self._first_bad is None:
                self._first_bad = (start + int(rows[0]), int(columns[0]) * self._width)
            self._n_zero += int((bad & ~found.any(axis=-1)).sum())
            self.bad_rows[start + rows] = True
        self._n_bad += int(bad.sum())
        self._n_blocks += bad.size
        self._squared_error += float(error.sum())
        self._squared += float(squared.sum())

    @property
    def distance(self) -> float:
        """Of what was found from what was expected, over all weights."""
        return float(np.sqrt(self._squared_error))

    @property
    def length(self) -> float:
        """Of what was expected."""
        return float(np.sqrt(self._squared))

    @property
    def error(self) -> float:
        """Relative; where the checkpoint's tensor is all zeros, infinite unless the GGUF's is too."""
        if self._squared == 0.0:
            return 0.0 if self._squared_error == 0.0 else float("inf")
        return float(np.sqrt(self._squared_error / self._squared))

    def message(self) -> str:
        """What is wrong, "" if nothing is."""
        floor = self._precision.floor * np.sqrt(float(np.prod(self._tensor.shape)))
        is_close = np.sqrt(self._squared_error) <= max(self._precision.tensor * np.sqrt(self._squared), floor)
        if is_close and not self._n_bad:
            return ""
        name = f"{self._tensor.name} ({self._ggml_type.name})"
        text = f"{name} is not the checkpoint's {self._tensor.source or 'absent bias, which means zeros'}:"
        if not is_close:
            text += f" relative error {self.error:.3g}, at most {self._precision.tensor:.3g} would be its type's;"
        if self._n_bad == self._n_blocks:
            text += " all of it is zero." if self._n_zero == self._n_bad else " no part of it fits."
        elif self._n_bad and self._first_bad is not None:
            row, column = self._first_bad
            where = f"row {row}, columns {column} to {column + self._width - 1}"
            wrong = "zero" if self._n_zero == self._n_bad else "wrong"
            text += (
                f" one block is {wrong}: {where}."
                if self._n_bad == 1
                else f" {self._n_bad} of {self._n_blocks} blocks are {wrong}, in rows {_ranges(self.bad_rows)};"
                f" the first is {where}."
            )
        return text.rstrip(";") + ("" if text.endswith(".") else ".")


def _sum_of_squares(blocks: NDArray[np.float32]) -> NDArray[np.float64]:
    sums: NDArray[np.float32] = np.einsum("ijk,ijk->ij", blocks, blocks)
    return sums.astype(np.float64)


def _ranges(rows: NDArray[np.bool_], most: int = 4) -> str:
    """The true ones as "0 to 127, 640"."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(np.int8)))
    pairs = [(int(start), int(stop) - 1) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    shown = [str(start) if start == stop else f"{start} to {stop}" for start, stop in pairs[:most]]
    return ", ".join(shown) + (f" and {len(pairs) - most} more places" if len(pairs) > most else "")


_SIGNATURE_COLUMNS = 256
"""Columns by which the weights of a head are recognised."""


def _misplaced_heads(
    tensor: Tensor,
    source: StoredTensor,
    held: ReaderTensor,
    ggml_type: T,
    hparams: Hyperparameters,
    bad_rows: NDArray[np.bool_],
) -> str:
    """Which heads' queries, keys or values stand where others belong, "" where none is recognised."""
    n_heads, head_dim = hparams.num_attention_heads, hparams.head_dim
    expected = np.concatenate([rows[:, :_SIGNATURE_COLUMNS].copy() for _, rows in _expected_rows(tensor, source)])
    found = np.concatenate(
        [
            _found_rows(held, ggml_type, start, start + head_dim)[:, :_SIGNATURE_COLUMNS].copy()
            for start in range(0, tensor.shape[0], head_dim)
        ]
    )
    likeness = _directions(found, 3 * n_heads) @ _directions(expected, 3 * n_heads).T
    places = []
    for group in range(3 * n_heads):
        best = int(likeness[group].argmax())
        if best != group and likeness[group, best] > 0.9 and bad_rows[group * head_dim : (group + 1) * head_dim].any():
            places.append(f"{_head_name(group, n_heads)} holds {_head_name(best, n_heads)}")
    more = f" and {len(places) - 6} more" if len(places) > 6 else ""
    return f" Heads are misplaced: {', '.join(places[:6])}{more}." if places else ""


def _directions(rows: NDArray[np.float32], n_groups: int) -> NDArray[np.float32]:
    flat = rows.reshape(n_groups, -1)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True).astype(np.float32)
    directions: NDArray[np.float32] = flat / np.maximum(lengths, np.float32(1e-30))
    return directions


def _head_name(group: int, n_heads: int) -> str:
    return f"the {('query', 'key', 'value')[group // n_heads]} of head {group % n_heads}"
