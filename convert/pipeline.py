"""Read, map, quantize, write: every weight is read once, in chunks of rows, and every output is written from it.

    shard --checkpoint--> rows as stored --gpt_neox--> rows in GGUF's order --quantize--> blocks --output--> .partial

Chunks go to a pool of threads; the work there is C without the GIL. Memory is bounded by the chunks in flight.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert import output
from convert.check import check_written
from convert.checkpoint import Checkpoint, StoredTensor
from convert.errors import CheckpointError, OutputError
from convert.gpt_neox import Tensor
from convert.mixtures import Mixture
from convert.output import OutputFile
from convert.plan import CHUNK_WEIGHTS, Plan, PlannedOutput, check_shard, stores_as
from convert.quantize import quantize_rows

Progress = Callable[[int, int], None]
"""Called with the bytes of the checkpoint that are done and those in all, a weight counted as two bytes."""

Recipe = Callable[[Mixture], Mapping[str, Any]]
"""What decides an output's bytes besides the source, for the manifest."""

CONFIG_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")
"""Small files that have a say in the output, besides the shards."""


@dataclass(frozen=True)
class Result:
    """A finished output."""

    path: Path
    size: int
    sha256: str


def convert(checkpoint: Checkpoint, plan: Plan, recipe: Recipe, progress: Progress | None = None) -> list[Result]:
    """Write all of the plan's outputs from one reading of the checkpoint.

    Either every output has its final name at the end, with a manifest beside it, or an exception is raised and
    nothing is left. Raises ConversionError; whatever else interrupts (KeyboardInterrupt) passes through after the
    clean-up.
    """
    done = 0
    total = plan.n_weights
    stop_hashing = threading.Event()
    source = None
    if checkpoint.fetch is None:
        source = source_record(checkpoint, plan)
        for shard in checkpoint.shards:
            with checkpoint.open_shard(shard) as stored:
                check_shard(checkpoint, shard, stored, plan.tensors)
    with ExitStack() as stack:
        files = [_open_output(planned, stack) for planned in plan.outputs]
        hasher = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="sha256"))
        stack.callback(stop_hashing.set)
        pool = ThreadPoolExecutor(plan.n_threads, thread_name_prefix="quantize")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        hashes: dict[str, str] = {}
        try:
            for shard, tensors in _by_shard(checkpoint, plan.tensors).items():
                with checkpoint.open_shard(shard) as stored:
                    if checkpoint.fetch is not None:
                        check_shard(checkpoint, shard, stored, plan.tensors)
                    digest = hasher.submit(output.sha256, checkpoint.folder / shard, stop_hashing.is_set)
                    for n_weights in _quantize_shard(tensors, stored, plan, files, pool):
                        done += n_weights
                        if progress is not None:
                            progress(2 * done, 2 * total)
                    hashes[shard] = digest.result()
            for file in files:
                file.close()
            if source is not None and source != source_record(checkpoint, plan):
                raise CheckpointError(
                    f"The checkpoint in {checkpoint.folder} changed while it was being converted.",
                    "Wait until its download or training has ended, then run the same command again.",
                )
            return _publish(plan, files, source_record(checkpoint, plan, hashes), recipe)
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
        record["shards"] = [output.file_stamp(checkpoint.folder / shard) for shard in checkpoint.shards]
    else:
        record["shards"] = [{"name": shard} for shard in checkpoint.shards]
    for shard in record["shards"]:
        if hashes is not None:
            shard["sha256"] = hashes[shard["name"]]
    record["files"] = {
        name: output.sha256(checkpoint.folder / name) for name in CONFIG_FILES if (checkpoint.folder / name).is_file()
    }
    return record


def _publish(plan: Plan, files: Sequence[OutputFile], source: Mapping[str, Any], recipe: Recipe) -> list[Result]:
    """Check what was written, and only when all of it and the manifests are on the disk give the final names."""
    results = []
    for planned, file in zip(plan.outputs, files, strict=True):
        check_written(planned, file.partial)
        result = Result(file.path, planned.size, output.sha256(file.partial))
        output.stage_manifest(file.path, _manifest(source, recipe(planned.mixture), result))
        results.append(result)
    for file in files:
        file.publish()
    return results


def _manifest(source: Mapping[str, Any], recipe: Mapping[str, Any], result: Result) -> dict[str, Any]:
    return {
        "format": output.MANIFEST_FORMAT,
        "source": source,
        "recipe": recipe,
        "output": {"name": result.path.name, "size": result.size, "sha256": result.sha256},
        "tools": output.tool_versions(),
        "verification": None,
    }


def _open_output(planned: PlannedOutput, stack: ExitStack) -> OutputFile:
    try:
        file = OutputFile(planned.path, planned.size)
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


def _quantize_shard(
    tensors: Sequence[Tensor],
    stored: Mapping[str, StoredTensor],
    plan: Plan,
    files: Sequence[OutputFile],
    pool: ThreadPoolExecutor,
) -> Iterator[int]:
    """Quantize and write the tensors of a shard; yields the number of weights of each chunk that is done."""
    in_flight: deque[Future[int]] = deque()
    for tensor in tensors:
        source = stored[tensor.source] if tensor.source is not None else _zeros(tensor.shape)
        for start, stop in _chunks(tensor.shape):
            if len(in_flight) >= 2 * plan.n_threads:
                yield in_flight.popleft().result()
            in_flight.append(pool.submit(_write_chunk, tensor, source, start, stop, plan.outputs, files))
    while in_flight:
        yield in_flight.popleft().result()


def _zeros(shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor("F32", np.zeros(shape, np.float32))


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about CHUNK_WEIGHTS weights; a vector is one chunk."""
    if len(shape) == 1:
        yield 0, shape[0]
        return
    step = max(1, CHUNK_WEIGHTS // shape[1])
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _write_chunk(
    tensor: Tensor,
    source: StoredTensor,
    start: int,
    stop: int,
    outputs: Sequence[PlannedOutput],
    files: Sequence[OutputFile],
) -> int:
    """Read rows [start, stop) once, quantize them to each type that an output wants, write; the weights done."""
    data = source.data[start:stop] if tensor.row_order is None else source.data[tensor.row_order[start:stop]]
    if not source.is_finite(data):
        raise CheckpointError(
            f"The tensor {tensor.source} holds NaN or infinite weights.",
            "The checkpoint is damaged, or its training diverged; it cannot be converted.",
        )
    blocks: dict[GGMLQuantizationType, NDArray[Any]] = {}
    for planned, file in zip(outputs, files, strict=True):
        entry = planned.tensors[tensor.name]
        if entry.ggml_type not in blocks:
            blocks[entry.ggml_type] = _encode(source, data, entry.ggml_type, tensor)
        rows = tensor.shape[0]
        file.write_at(planned.position(tensor.name) + start * (entry.nbytes // rows), blocks[entry.ggml_type])
    return data.size


def _encode(source: StoredTensor, data: NDArray[Any], ggml_type: GGMLQuantizationType, tensor: Tensor) -> NDArray[Any]:
    if stores_as(source.dtype, ggml_type):
        return np.ascontiguousarray(data)
    rows = source.to_float32(data)
    if ggml_type == GGMLQuantizationType.F32:
        return np.ascontiguousarray(rows)
    try:
        return quantize_rows(rows, ggml_type)
    except CheckpointError as error:
        raise CheckpointError(
            f"The tensor {tensor.source} cannot be written: {error}.", "Convert this model with --quant F32."
        ) from None
