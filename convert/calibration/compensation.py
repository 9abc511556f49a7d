"""W4's rounding: levels are chosen so that the errors of neighbouring columns cancel in what the model computes.

A weight rounded up is made up for by its neighbours, as far as their inputs move together: columns are rounded one
after the other, and each makes up for the errors of those before it. That is the method of GPTQ (Frantar et al. 2022,
https://arxiv.org/abs/2210.17323), here on ggml's own grids: each super-block's scales are found by ggml's search on the
columns as they should be by then, and then levels and scales are set anew by turns, see `rounding`. So the file is an
ordinary GGUF, of the same size.

What moves together is told by H = X^T X, X being a matrix's inputs on calibration texts. They come from the reference's
pass through the checkpoint, one layer after the other:

    reference --(inputs)--> Hessians of a layer --> rounded matrices of it --> written over those in the .partial file
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.model.gpt_neox import Tensor
from convert.quantization.block_types import SUPER_BLOCK, TYPES
from convert.quantization.grid import read_grid, with_values
from convert.quantization.quantize import quantize_rows
from convert.quantization.rounding import round_super_block
from convert.reference import reference
from convert.reference.texts import calibration, describe, read_tokenizer, sequences
from convert.source.checkpoint import Checkpoint
from convert.writing.output import OutputFile
from convert.writing.pipeline import Refine
from convert.writing.plan import Plan, PlannedOutput, available_cores

Floats = NDArray[np.float32]

METHOD = "GPTQ, levels and scales set anew by turns"
"""Changed when the same checkpoint and texts give another file than before."""

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
    factor = _factor(hessian)
    n_rows, n_columns = rows.shape
    errors = torch.empty(n_rows, n_columns)
    blocks = []
    for start in range(0, n_columns, SUPER_BLOCK):
        here = slice(start, start + SUPER_BLOCK)
        inside = factor[here, here].contiguous()
        wanted = torch.from_numpy(np.array(rows[:, here]))
        owed = errors[:, :start] @ factor[:start, here]
        target = (wanted + torch.linalg.solve_triangular(inside, owed, upper=True, left=False)).contiguous().numpy()
        round_rows = partial(_round_rows, ggml_type=ggml_type, factor=inside.numpy())
        rounded = pool.map(round_rows, [target[first : first + _ROWS] for first in range(0, n_rows, _ROWS)])
        found, values = zip(*rounded, strict=True)
        blocks.append(np.concatenate(found))
        errors[:, here] = wanted - torch.from_numpy(np.concatenate(values))
    return np.concatenate(blocks, axis=1)


def _round_rows(rows: Floats, ggml_type: GGMLQuantizationType, factor: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Super-blocks (n_rows, bytes) of `rows` (n_rows, 256), and what they decode to.

    A column's error counts as much as it does once the later columns have made up for it.
    """
    found = quantize_rows(rows, ggml_type, np.square(factor.diagonal()))
    grid, values = round_super_block(rows, ggml_type, read_grid(found, ggml_type), factor)
    return with_values(found, ggml_type, grid, values), values


def _factor(hessian: torch.Tensor) -> torch.Tensor:
    """F, upper triangular, with F F^T = H with damping: float32 (n, n).

    (w - q) H (w - q)^T is the squared length of (w - q) F, whose element k depends on the columns up to k alone.
    """
    damped = hessian.double()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    factor: torch.Tensor = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1).float()
    return factor


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
    texts = describe(calibration(), [])["sha256"]
    return {"method": METHOD, "texts": texts, "tokens": CALIBRATION_TOKENS, "damping": DAMPING}
