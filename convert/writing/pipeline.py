"""Read, map, quantize, write: every weight is read once, in chunks of rows, and every output is written from it.

    shard --checkpoint--> rows as stored --gpt_neox--> rows in GGUF's order --quantize--> blocks --output--> .partial

One thread reads the shards ahead and hashes them (`reading`). Chunks go to a pool of threads, in the order in which
they lie in the file; the work there is compiled code without the GIL. Memory is bounded by the chunks in flight.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.errors import CheckpointError, OutputError
from convert.model.gpt_neox import Tensor
from convert.quantization.quantize import quantize_rows
from convert.source.checkpoint import Checkpoint, file_stamp
from convert.source.reading import ShardReader
from convert.source.tensor_files import Rows, StoredTensor
from convert.writing.check import check_written
from convert.writing.output import OutputFile
from convert.writing.plan import CHUNK_WEIGHTS, Plan, PlannedOutput, check_shard, stores_as
from convert.writing.publishing import Recipe, Result, publish
from weblab_local.files import let_go, sha256

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes of the checkpoint that are done and those in all, a weight counted as two bytes."""

Shown = Callable[[str], AbstractContextManager[Progress]]
"""Shows how far the work of that title is, as `progress.shown` does."""

REFINING_COST = 20
"""Rounding a matrix with regard to its inputs takes about so many times as long as reading and quantizing it."""


class Refine(Protocol):
    """What rounds the matrices of a compensated output, when all else is written: `compensation.Refinement`."""

    def __call__(self, planned: PlannedOutput, file: OutputFile, progress: Progress) -> None:
        """Write these matrices and their biases into the file."""

    def resumes(self, planned: PlannedOutput) -> bool:
        """Whether an earlier run was interrupted in that, and what it had written is there."""


Verify = Callable[[Sequence[Path]], Sequence[Mapping[str, Any] | None]]
"""Called with the finished files, which have no final name yet: the figures for each one's manifest, whose "passed"
decides whether it gets that name. None where it could not be verified, which does."""


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    recipe: Recipe,
    shown: Shown = lambda _: nullcontext(lambda *_: None),
    refine: Refine | None = None,
    verify: Verify | None = None,
) -> list[Result]:
    """Write all of the plan's outputs from one reading of the checkpoint; `refine` those that are compensated.

    Either every output has its final name at the end, with a manifest beside it, or an exception is raised and
    nothing is left, but for what `verify` lets fail: that is kept as .unverified. Raises ConversionError; whatever else
    interrupts (KeyboardInterrupt) passes through after the clean-up, or during `verify` after the files have their
    names. What `refine` had done until then is kept, and the next run goes on there.
    """
    compensated = [planned.mixture.compensated for planned in plan.outputs]
    if refine is None and any(compensated):
        raise ValueError("a compensated output needs what refines it")
    done = 0
    total = plan.n_weights
    stages = Stages()
    source = None
    if checkpoint.fetch is None:
        source = source_record(checkpoint, plan)
        for shard in checkpoint.shards:
            with checkpoint.open_shard(shard) as stored:
                check_shard(checkpoint, shard, stored, plan.tensors)
    with ExitStack() as stack:
        files = [_open_output(planned, stack, refine) for planned in plan.outputs]
        pool = ThreadPoolExecutor(plan.n_threads, thread_name_prefix="quantize")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        hashes: dict[str, str] = {}
        try:
            with shown("converting") as whole:
                parts = _parts(whole, 2 * total, [1, *(REFINING_COST for found in compensated if found)])
                progress = next(parts)
                for shard, tensors in _by_shard(checkpoint, plan.tensors).items():
                    with checkpoint.open_shard(shard) as stored, ShardReader(checkpoint.folder / shard) as reader:
                        if checkpoint.fetch is not None:
                            check_shard(checkpoint, shard, stored, plan.tensors)
                        for n_weights in _quantize_shard(tensors, stored, plan, files, pool, reader, stages):
                            done += n_weights
                            progress(2 * done, 2 * total)
                        with stages.waiting("the reader"):
                            hashes[shard] = reader.sha256()
                for planned, file in zip(plan.outputs, files, strict=True):
                    if planned.mixture.compensated and refine is not None:
                        refine(planned, file, next(parts))
            with stages.waiting("the disk to have the output"):
                for file in files:
                    file.close()
            if source is not None and source != source_record(checkpoint, plan):
                raise CheckpointError(
                    f"The checkpoint in {checkpoint.folder} changed while it was being converted.",
                    "Wait until its download or training has ended, then run the same command again.",
                )
            with stages.waiting("the check of the output"):
                results = _check(plan, files)
            figures: Sequence[Mapping[str, Any] | None] = [None] * len(files)
            interruption: KeyboardInterrupt | None = None
            if verify is not None:
                try:
                    with stages.waiting("the verification"):
                        figures = verify([file.partial for file in files])
                except KeyboardInterrupt as error:  # the files are finished: what is given up is the comparison
                    let_go(error)  # the comparison had the files mapped
                    interruption = error
            stages.log()
            publish(plan, files, results, figures, source_record(checkpoint, plan, hashes), recipe)
            if interruption is not None:
                raise interruption
            return results
        except KeyboardInterrupt:
            for planned, file in zip(plan.outputs, files, strict=True):
                if refine is not None and refine.resumes(planned):
                    file.keep()
            raise
        except OSError as error:
            raise OutputError(
                f"Reading or writing failed: {error}.",
                "Nothing was left behind. Check the disk's free space and health, then run the same command again.",
            ) from error


def source_record(checkpoint: Checkpoint, plan: Plan, hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the manifest says of the source; with `hashes` each shard has its SHA-256."""
    record: dict[str, Any] = {
        "repository": plan.card.repository,
        "revision": plan.card.revision,
    }
    if hashes is None or checkpoint.release is None:
        record["shards"] = [file_stamp(checkpoint.folder / shard) for shard in checkpoint.shards]
    else:
        record["shards"] = [{"name": shard} for shard in checkpoint.shards]
    for shard in record["shards"]:
        if hashes is not None:
            shard["sha256"] = hashes[shard["name"]]
    if checkpoint.adapters:
        record["adapters"] = [
            [file_stamp(adapter.folder / name) for name in adapter.files] for adapter in checkpoint.adapters
        ]
    record["files"] = {name: sha256(checkpoint.folder / name) for name in checkpoint.files_with_a_say}
    return record


def _check(plan: Plan, files: Sequence[OutputFile]) -> list[Result]:
    """What was written, read back."""
    for planned, file in zip(plan.outputs, files, strict=True):
        check_written(planned, file.partial)
    with ThreadPoolExecutor(plan.n_threads, thread_name_prefix="sha256") as pool:
        hashes = pool.map(sha256, [file.partial for file in files])
        return [
            Result(file.path, planned.size, sha256)
            for planned, file, sha256 in zip(plan.outputs, files, hashes, strict=True)
        ]


def _parts(progress: Progress, total: int, costs: Sequence[int]) -> Iterator[Progress]:
    """For each of the parts of the work, which have these `costs`, what shows in `progress` how far it is."""

    def show(begin: int, cost: int, done: int, of: int) -> None:
        progress(int(total * (begin + cost * (done / of)) / sum(costs)), total)

    begin = 0
    for cost in costs:
        yield partial(show, begin, cost)
        begin += cost


def _open_output(planned: PlannedOutput, stack: ExitStack, refine: Refine | None) -> OutputFile:
    resume = refine is not None and refine.resumes(planned)
    try:
        file = OutputFile(planned.path, planned.size, resume)
        stack.callback(file.discard)
        file.write_at(0, planned.header)
    except OSError as error:
        raise OutputError(f"Cannot write to {planned.path.parent}: {error}.", "Choose another --output.") from error
    return file


def _by_shard(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The tensors to write while each shard is open; those with no source go with the first."""
    by_shard: dict[str, list[Tensor]] = {shard: [] for shard in checkpoint.shards}
    for tensor in tensors:
        shard = checkpoint.shards[0] if tensor.source is None else checkpoint.weight_map[tensor.source]
        by_shard[shard].append(tensor)
    return by_shard


Seconds = defaultdict[str, float]
"""Time by what it went into."""


class Stages:
    """Where the time goes: what the conversion waits for, and what the threads that quantize are busy with."""

    def __init__(self) -> None:
        self.waited: Seconds = defaultdict(float)
        self.busy: Seconds = defaultdict(float)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts the time of the context as waiting for `what`."""
        started = time.perf_counter()
        yield
        self.waited[what] += time.perf_counter() - started

    def worked(self, seconds: Seconds) -> None:
        """Counts what a thread was busy with."""
        for what, spent in seconds.items():
            self.busy[what] += spent

    def log(self) -> None:
        """Say it, for `--verbose`."""
        for title, seconds in (("waited for", self.waited), ("threads were busy with", self.busy)):
            _log.info("%s: %s", title, ", ".join(f"{what} {spent:.1f} s" for what, spent in seconds.items()))


@dataclass(frozen=True)
class _Chunk:
    """Rows [start, stop) of a tensor. It keeps no array, or the pool would keep the shard mapped beyond its end."""

    tensor: Tensor
    stored: Mapping[str, StoredTensor]
    start: int
    stop: int

    @property
    def source(self) -> StoredTensor:
        """What the checkpoint has of the tensor."""
        return _source(self.tensor, self.stored)

    @property
    def needs(self) -> int:
        """Where in the shard the last byte of it lies; rows that are put in another order come from all over."""
        rows = self.stop if self.tensor.row_order is None else self.tensor.shape[0]
        return self.source.position + self.source.data[:1].nbytes * rows


def _quantize_shard(
    tensors: Sequence[Tensor],
    stored: Mapping[str, StoredTensor],
    plan: Plan,
    files: Sequence[OutputFile],
    pool: ThreadPoolExecutor,
    reader: ShardReader,
    stages: Stages,
) -> Iterator[int]:
    """Quantize and write the tensors of a shard; yields the number of weights of each chunk that is done."""
    in_flight: deque[tuple[_Chunk, Future[Seconds]]] = deque()

    def finish() -> int:
        chunk, future = in_flight.popleft()
        with stages.waiting("the threads"):
            stages.worked(future.result())
        reader.used(chunk.source.position if chunk.tensor.row_order is not None else chunk.needs)
        return (chunk.stop - chunk.start) * prod(chunk.tensor.shape[1:])

    for chunk in _chunks(tensors, stored):
        if len(in_flight) >= 2 * plan.n_threads:
            yield finish()
        with stages.waiting("the reader"):
            reader.wait_for(chunk.needs)
        in_flight.append((chunk, pool.submit(_write_chunk, chunk, plan.outputs, files)))
    while in_flight:
        yield finish()


def _chunks(tensors: Sequence[Tensor], stored: Mapping[str, StoredTensor]) -> Iterator[_Chunk]:
    """Ranges of rows of about CHUNK_WEIGHTS weights, in the order of the file; a vector is one chunk."""
    for tensor in sorted(tensors, key=lambda tensor: _source(tensor, stored).position):
        rows = tensor.shape[0]
        step = rows if len(tensor.shape) == 1 else max(1, CHUNK_WEIGHTS // tensor.shape[1])
        for start in range(0, rows, step):
            yield _Chunk(tensor, stored, start, min(start + step, rows))


def _source(tensor: Tensor, stored: Mapping[str, StoredTensor]) -> StoredTensor:
    return StoredTensor("F32", np.zeros(tensor.shape, np.float32)) if tensor.source is None else stored[tensor.source]


def _write_chunk(chunk: _Chunk, outputs: Sequence[PlannedOutput], files: Sequence[OutputFile]) -> Seconds:
    """Read the rows once, quantize them to each type that an output wants, write; the seconds that each took."""
    tensor, source, start, stop = chunk.tensor, chunk.source, chunk.start, chunk.stop
    seconds: Seconds = defaultdict(float)
    clock = time.perf_counter
    began = clock()
    which: Rows = slice(start, stop) if tensor.row_order is None else tensor.row_order[start:stop]
    data = source.data[which]
    if not source.is_finite(data):
        raise CheckpointError(
            f"The tensor {tensor.source} holds NaN or infinite weights.",
            "The checkpoint is damaged, or its training diverged; it cannot be converted.",
        )
    now = [
        (planned, file) for planned, file in zip(outputs, files, strict=True) if not planned.is_compensated(tensor.name)
    ]
    wanted = {planned.tensors[tensor.name].ggml_type: planned.importance.get(tensor.name) for planned, _ in now}
    began, seconds["reading"] = clock(), clock() - began
    rows = None if all(stores_as(source, ggml_type) for ggml_type in wanted) else source.to_float32(data, which)
    if source.added and rows is not None and not np.isfinite(rows).all():
        raise CheckpointError(
            f"The tensor {tensor.source} is beyond float32 with the adapter in it.",
            "The adapter's training diverged, or its scale is too large.",
        )
    blocks = {
        ggml_type: _encode(tensor, source, data, rows, ggml_type, importance)
        for ggml_type, importance in wanted.items()
    }
    began, seconds["quantizing"] = clock(), clock() - began
    for planned, file in now:
        entry = planned.tensors[tensor.name]
        position = planned.position(tensor.name) + start * (entry.nbytes // tensor.shape[0])
        file.write_at(position, blocks[entry.ggml_type])
    seconds["writing"] = clock() - began
    return seconds


def _encode(
    tensor: Tensor,
    source: StoredTensor,
    data: NDArray[Any],
    rows: NDArray[np.float32] | None,
    ggml_type: GGMLQuantizationType,
    importance: NDArray[np.float32] | None,
) -> NDArray[Any]:
    """The bytes of `data`, which as float32 are `rows`, in an output where the tensor has `ggml_type`."""
    if rows is None or stores_as(source, ggml_type):
        return np.ascontiguousarray(data)
    if ggml_type == GGMLQuantizationType.F32:
        return np.ascontiguousarray(rows)
    try:
        return quantize_rows(rows, ggml_type, importance)
    except CheckpointError as error:
        raise CheckpointError(
            f"The tensor {tensor.source} cannot be written: {error}.", "Convert this model with --quant F32."
        ) from None
