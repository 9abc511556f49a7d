"""W4's rounding: levels are chosen so that the errors of neighbouring columns cancel in what the model computes.

A weight rounded up is made up for by its neighbours, as far as their inputs move together: columns are rounded one
after the other, and the error of each is spread over those still to come. That is the method of GPTQ (Frantar et al.
2022, https://arxiv.org/abs/2210.17323), here on ggml's own grids: each super-block's scales are found by ggml's search
on the columns as they are by then, and only the levels differ. So the file is an ordinary GGUF, of the same size.

What moves together is told by H = X^T X, X being a matrix's inputs on calibration texts. They come from the reference's
pass through the checkpoint, one layer after the other:

    reference --(inputs)--> Hessians of a layer --> rounded matrices of it --> written over those in the .partial file
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.model.gpt_neox import Tensor
from convert.quantization.block_types import SUPER_BLOCK, TYPES
from convert.quantization.grid import read_grid, with_values
from convert.quantization.kernels import compiled
from convert.quantization.quantize import quantize_rows
from convert.reference import reference
from convert.reference.texts import calibration, describe, read_tokenizer, sequences
from convert.source.checkpoint import Checkpoint
from convert.writing.output import OutputFile
from convert.writing.pipeline import Refine
from convert.writing.plan import Plan, PlannedOutput, available_cores

Floats = NDArray[np.float32]

DAMPING = 0.05
"""Added to H's diagonal, as a share of its mean: columns are taken for a little less dependent than they seem."""

MAX_COLUMNS = 6144
"""Columns that are looked at together: H has their square of values, and is inverted. Longer rows are cut evenly."""

CALIBRATION_TOKENS = 8000
CALIBRATION_CONTEXT = 512
"""Tokens in all, and in a sequence at most."""

_ROWS = 256
"""Rows that one thread rounds at a time."""


class Hessian:
    """X^T X of one weight's inputs, in square parts along its diagonal: for each, (columns, float32 (n, n))."""

    def __init__(self, n_columns: int, max_columns: int = MAX_COLUMNS) -> None:
        n_super_blocks = n_columns // SUPER_BLOCK
        n_parts = -(-n_columns // max_columns)
        cuts = [SUPER_BLOCK * (n_super_blocks * part // n_parts) for part in range(n_parts + 1)]
        self.parts = [(slice(start, stop), torch.zeros(stop - start, stop - start)) for start, stop in pairwise(cuts)]

    def add(self, inputs: torch.Tensor) -> None:
        """Count `inputs` (n_tokens, n_columns) in."""
        for columns, total in self.parts:
            part = inputs[:, columns].cpu()
            total.addmm_(part.T, part)


def compensated(rows: Floats, ggml_type: GGMLQuantizationType, hessian: Hessian) -> NDArray[np.uint8]:
    """Quantize `rows` (n_rows, n_columns) to `ggml_type`, one of the kernels', with compensation: (n_rows, bytes)."""
    with ThreadPoolExecutor(available_cores()) as pool:
        parts = [_compensate(rows[:, columns], ggml_type, total, pool) for columns, total in hessian.parts]
    return np.concatenate(parts, axis=1)


def _compensate(
    rows: Floats, ggml_type: GGMLQuantizationType, hessian: torch.Tensor, pool: ThreadPoolExecutor
) -> NDArray[np.uint8]:
    spread = _spread(hessian)
    importance = hessian.diagonal().numpy()
    left = torch.from_numpy(np.array(rows))
    n_columns = rows.shape[1]
    blocks = []
    for start in range(0, n_columns, SUPER_BLOCK):
        stop = start + SUPER_BLOCK
        columns = left[:, start:stop].contiguous().numpy()
        errors = np.empty_like(columns)
        inside = np.ascontiguousarray(spread[start:stop, start:stop].numpy())
        weights = np.ascontiguousarray(importance[start:stop])

        def round_rows(
            first: int,
            columns: Floats = columns,
            errors: Floats = errors,
            inside: Floats = inside,
            weights: Floats = weights,
        ) -> NDArray[np.uint8]:
            some = slice(first, first + _ROWS)
            found = quantize_rows(columns[some], ggml_type, weights)
            grid = read_grid(found, ggml_type)
            values = columns[some].copy()
            _round_columns(
                values,
                grid.steps,
                grid.offsets,
                grid.block,
                np.float32(grid.lowest),
                np.float32(grid.highest),
                inside,
                errors[some],
            )
            return with_values(found, ggml_type, grid, values)

        blocks.append(np.concatenate(list(pool.map(round_rows, range(0, len(rows), _ROWS)))))
        if stop < n_columns:
            left[:, stop:] -= torch.from_numpy(errors) @ spread[start:stop, stop:]
    return np.concatenate(blocks, axis=1)


def _spread(hessian: torch.Tensor) -> torch.Tensor:
    """Row i: how much of column i's error each later column takes over. Float32 (n, n), its diagonal 1."""
    damped = hessian.double()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    spread: torch.Tensor = (factor / factor.diagonal()[:, None]).float()
    return spread


@compiled
def _round_columns(
    values: Floats,
    steps: Floats,
    offsets: Floats,
    block: int,
    lowest: np.float32,
    highest: np.float32,
    spread: Floats,
    errors: Floats,
) -> None:
    """Put `values` (n_rows, 256) on their grid, column by column; `errors` is what each column was off by."""
    n_columns = values.shape[1]
    for row in range(len(values)):
        left = values[row]
        for column in range(n_columns):
            step, offset = steps[row, column // block], offsets[row, column // block]
            value = -offset
            if step != np.float32(0):
                level = np.rint((left[column] + offset) / step)
                value = step * min(max(level, lowest), highest) - offset
            error = left[column] - value
            left[column] = value
            errors[row, column] = error
            share = spread[column]
            for later in range(column + 1, n_columns):
                left[later] -= error * share[later]


class Compensation:
    """Observes the reference's pass: rounds each layer's matrices when their inputs are known, and writes them."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, planned: PlannedOutput, file: OutputFile) -> None:
        self._checkpoint = checkpoint
        self._planned = planned
        self._file = file
        self._tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in plan.tensors}
        self._hessians: dict[str, Hessian] = {}
        self._layer = ""

    def __call__(self, name: str, inputs: torch.Tensor) -> None:
        """As reference.Observer."""
        layer = name.rpartition(".")[0].rpartition(".")[0]
        if layer != self._layer:
            self.finish()
            self._layer = layer
        if self._planned.tensors[name].ggml_type not in TYPES:
            return
        if name not in self._hessians:
            self._hessians[name] = Hessian(inputs.shape[1])
        self._hessians[name].add(inputs)

    def finish(self) -> None:
        """Round and write the matrices whose inputs were seen."""
        while self._hessians:
            name, hessian = self._hessians.popitem()
            tensor, entry = self._tensors[name], self._planned.tensors[name]
            if tensor.source is None:
                continue
            with self._checkpoint.open_shard(self._checkpoint.weight_map[tensor.source]) as stored:
                rows = stored[tensor.source].read(slice(None) if tensor.row_order is None else tensor.row_order)
            self._file.write_at(self._planned.position(name), compensated(rows, entry.ggml_type, hessian))


def prepare(checkpoint: Checkpoint, plan: Plan, say: Callable[[str], None]) -> Refine:
    """What `pipeline.convert` calls to round the matrices of a compensated output; says what it will cost.

    The inputs are those that the checkpoint makes of CALIBRATION_TOKENS tokens of the project's calibration texts. For
    a layer of the 10B it takes 1.1 GB for its weights, 0.7 GB for H, 0.6 GB for an inverse and 0.8 GB for a matrix.
    """
    n_ctx = min(CALIBRATION_CONTEXT, plan.hparams.max_position_embeddings)
    tokenizer = read_tokenizer(checkpoint.tokenizer_folder)
    ids = sequences(calibration(), tokenizer, plan.hparams.eos_token_id, n_ctx, CALIBRATION_TOKENS)
    n_tokens = sum(map(len, ids))
    say(
        f"W4: when all is written, the full model reads {n_tokens} tokens of calibration text, layer by layer, and "
        "each layer is rounded by what it made of them. For the 10B that is an hour or more."
    )

    def refine(planned: PlannedOutput, file: OutputFile, progress: Callable[[int, int], None]) -> None:
        rounding = Compensation(checkpoint, plan, planned, file)
        for _ in reference.logits(checkpoint, ids, observer=rounding, progress=progress):
            pass
        rounding.finish()

    return refine


def recipe() -> dict[str, Any]:
    """What decides the result besides the checkpoint, for the manifest."""
    return {"texts": describe(calibration(), [])["sha256"], "tokens": CALIBRATION_TOKENS, "damping": DAMPING}
