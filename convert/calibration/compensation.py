"""W4's and W3's rounding: the errors of neighbouring columns cancel in what the model computes.

A weight rounded up is made up for by its neighbours, as far as their inputs move together: columns are rounded one
after the other, and each makes up for the errors of those before it. That is the method of GPTQ (Frantar et al. 2022,
https://arxiv.org/abs/2210.17323), here on ggml's own grids: each super-block's scales are found by ggml's search on the
columns as they should be by then, and then levels and scales are set anew by turns, see `rounding`.

A matrix also makes up for what was rounded before it: its inputs X are those of the rounded model, where the full one
has Y (GPTAQ, Li et al. 2025, https://arxiv.org/abs/2504.02692). What all that does to the mean of an output is taken
back in its bias. So the file is an ordinary GGUF, of the same size.

    two passes through the layers --(X and Y)--> moments of a matrix --> its blocks, and its bias --> the .partial file
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from convert.calibration.moments import Moments, Part, column_parts
from convert.calibration.products import product, product_type
from convert.calibration.two_passes import TwoPasses
from convert.model.gpt_neox import Tensor
from convert.quantization.block_types import SUPER_BLOCK
from convert.quantization.dequantize import dequantize_rows
from convert.quantization.grid import read_grid, with_values
from convert.quantization.quantize import quantize_rows
from convert.quantization.rounding import SWEEPS, round_super_block
from convert.reference.reference import find_device
from convert.reference.state import StateFile, identity
from convert.reference.texts import calibration, describe, read_tokenizer, sequences
from convert.reference.weights import Weights
from convert.source.checkpoint import Checkpoint
from convert.writing.output import OutputFile, rounding_state
from convert.writing.plan import Plan, PlannedOutput, available_cores
from weblab_local.files import partial_path

Floats = NDArray[np.float32]

METHOD = "GPTAQ about exact means, damped by tokens, with biases, levels and scales set anew by turns"
"""Changed when the same checkpoint and texts give another file than before."""

DAMPING = 0.05
"""Added to X^T X's diagonal, as a share of its mean: columns are taken for a little less dependent than they seem."""

SCARCITY = 0.195
"""For each column to a row of X the same, where that is more: few rows make columns look more dependent than they are.
The 10B has 0.6 columns to a token. See `docs/figures.md`."""

SHARE = 0.5
"""Of the way from what a matrix makes of X to what it makes of Y; all of it would follow the texts too closely."""

CALIBRATION_TOKENS = 8000
CALIBRATION_CONTEXT = 512
"""Tokens in all, and in a sequence at most."""

_TASKS = 2
"""Shares of the rows for each thread: many small ones take longer, and of one each all wait for the slowest core."""

_ROWS_AT_ONCE = 1 << 14
"""Rows whose errors are in memory at a time: a layer's are fewer, an embedding's more."""


def compensated(
    rows: Floats, ggml_type: GGMLQuantizationType, parts: Iterable[Part], dtype: torch.dtype = torch.float32
) -> NDArray[np.uint8]:
    """Quantize `rows` (n_rows, n_columns) to `ggml_type`, one of GRIDS, with compensation: (n_rows, bytes).

    `dtype` is what products are computed in, on the device where the parts are.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        blocks = list(map(partial(_compensate, rows, ggml_type, dtype, pool), parts))  # which keeps no part
    return np.concatenate(blocks, axis=1)


def bias_shift(rows: Floats, rounded: Floats, moments: Moments) -> Floats:
    """What the bias of `rows` (n_rows, n_columns) has to take back once they are `rounded`: (n_rows,)."""
    shift: Floats = (rows - rounded) @ moments.mean.float().numpy() + rows @ moments.mean_lack.float().numpy()
    return shift


def _compensate(
    rows: Floats, ggml_type: GGMLQuantizationType, dtype: torch.dtype, pool: ThreadPoolExecutor, part: Part
) -> NDArray[np.uint8]:
    """The blocks of a part's columns: (n_rows, bytes)."""
    factor = _factor(part)
    steer = torch.linalg.solve_triangular(factor, SHARE * part.lack, upper=True).T.to(dtype)
    return np.concatenate(
        [
            _round_with(torch.from_numpy(some), ggml_type, factor, steer, pool)
            for some in np.split(rows[:, part.columns], range(_ROWS_AT_ONCE, len(rows), _ROWS_AT_ONCE))
        ]
    )


def _round_with(
    exact: torch.Tensor,
    ggml_type: GGMLQuantizationType,
    factor: torch.Tensor,
    steer: torch.Tensor,
    pool: ThreadPoolExecutor,
) -> NDArray[np.uint8]:
    """Blocks of `exact` (n_rows, n_columns), each with what the super-blocks before it owe it: (n_rows, bytes).

    `factor` and `steer` are (n_columns, n_columns). What is owed for other inputs than the full model's is that row of
    `exact` times `steer`.
    """
    dtype = steer.dtype
    weights = exact.to(steer.device, dtype)
    errors = torch.empty_like(weights)
    rows_each = -(-len(exact) // (_TASKS * available_cores()))
    blocks = []
    for start in range(0, exact.shape[1], SUPER_BLOCK):
        here = slice(start, start + SUPER_BLOCK)
        inside = factor[here, here].contiguous()
        owed = product(weights, steer[:, here], dtype)
        owed += product(errors[:, :start], factor[:start, here], dtype)
        owed = torch.linalg.solve_triangular(inside, owed, upper=True, left=False)
        target = exact[:, here] + owed.cpu()
        round_rows = partial(_round_rows, ggml_type=ggml_type, factor=inside.cpu().numpy())
        found, values = zip(*pool.map(round_rows, target.split(rows_each)), strict=True)
        blocks.append(np.concatenate(found))
        errors[:, here] = exact[:, here] - torch.from_numpy(np.concatenate(values))
    return np.concatenate(blocks, axis=1)


def _round_rows(
    rows: torch.Tensor, ggml_type: GGMLQuantizationType, factor: Floats
) -> tuple[NDArray[np.uint8], Floats]:
    """Super-blocks (n_rows, bytes) of `rows` (n_rows, 256), and what they decode to.

    A column's error counts as much as it does once the later columns have made up for it.
    """
    wanted = rows.numpy()
    found = quantize_rows(wanted, ggml_type, np.square(factor.diagonal()))
    grid, values = round_super_block(wanted, ggml_type, read_grid(found, ggml_type), factor)
    return with_values(found, ggml_type, grid, values), values


def _factor(part: Part) -> torch.Tensor:
    """F, upper triangular, with F F^T = X^T X with damping: float32 (n, n).

    What rows q in place of rows w do to the outputs is (w - q) X^T X (w - q)^T, the squared length of (w - q) F, whose
    element k depends on the columns up to k alone. With other inputs X than the full model's Y, w (Y - X)^T X F^-T is
    added to (w - q) F.
    """
    damped = part.product.cpu().flip(0, 1)
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += max(DAMPING, SCARCITY * len(damped) / part.n_rows) * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        lower = torch.linalg.cholesky(damped.double()).float()
    factor: torch.Tensor = lower.flip(0, 1).to(part.product.device)
    return factor


class Compensation:
    """Rounds matrices when the moments of their inputs are known, and writes them and their biases into the file."""

    def __init__(self, weights: Weights, plan: Plan, planned: PlannedOutput, file: OutputFile) -> None:
        self._weights = weights
        self._planned = planned
        self._file = file
        self.dtype = product_type(weights.device)
        self._tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in plan.tensors}

    def embedding(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Write the embedding; its rows for these token ids as the file has them, (len(ids), hidden_size).

        It is rounded for what the matrices that read it make of it, the layer norm before them included.
        """
        name = "token_embd.weight"
        ggml_type = self._planned.tensors[name].ggml_type
        if not self.is_rounded(name):
            rows = self._weights.gather(name, ids).cpu().numpy()
            blocks = quantize_rows(rows, ggml_type, self._planned.importance.get(name))
            return torch.from_numpy(dequantize_rows(blocks, ggml_type))
        rows = self._weights.read(name).cpu().numpy()
        blocks = compensated(rows, ggml_type, [self._readers_of_the_embedding()], self.dtype)
        self._file.write_at(self._planned.position(name), blocks)
        return torch.from_numpy(dequantize_rows(blocks[ids], ggml_type))

    def _readers_of_the_embedding(self) -> Part:
        """A^T A of the matrices A that the first layer multiplies the embedding with."""
        n_columns = self._tensors["token_embd.weight"].shape[1]
        product, n_rows = torch.zeros(n_columns, n_columns), 0
        for norm, matrix in (("attn_norm", "attn_qkv"), ("ffn_norm", "ffn_up")):
            rows = self._weights.read(f"blk.0.{matrix}.weight").cpu() * self._weights.read(f"blk.0.{norm}.weight").cpu()
            rows -= rows.mean(dim=1, keepdim=True)  # a layer norm takes the mean away
            product.addmm_(rows.T, rows)
            n_rows += len(rows)
        return Part(slice(0, n_columns), product, torch.zeros_like(product), n_rows)

    def is_rounded(self, name: str) -> bool:
        """Whether that matrix is rounded here."""
        return self._planned.is_compensated(name)

    def flush(self) -> None:
        """What was rounded until now is on the disk."""
        self._file.flush()

    def layer_matrix(self, name: str, weight: torch.Tensor, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's matrix and its bias; both as the file has them, in the checkpoint's order of rows.

        `name` is that of the weight, `weight` (n_rows, n_columns) what the checkpoint has.
        """
        matrix, bias = self._tensors[name], self._tensors[name.removesuffix("weight") + "bias"]
        order = slice(None) if matrix.row_order is None else matrix.row_order
        back = slice(None) if matrix.row_order is None else matrix.row_order.argsort()
        rows = weight.cpu().numpy()
        blocks = self._write(name, rows[order], moments)
        rounded = dequantize_rows(blocks[back], self._planned.tensors[name].ggml_type)
        values = np.zeros(len(rows), np.float32) if bias.source is None else self._weights.read(bias.name).cpu().numpy()
        values = values + bias_shift(rows, rounded, moments)
        self._file.write_at(self._planned.position(bias.name), np.ascontiguousarray(values[order]))
        return torch.from_numpy(rounded).to(weight.device), torch.from_numpy(values).to(weight.device)

    def output(self, moments: Moments) -> None:
        """Write the output matrix."""
        name = "output.weight"
        self._write(name, self._weights.read(name).cpu().numpy(), moments)

    def _write(self, name: str, rows: Floats, moments: Moments) -> NDArray[np.uint8]:
        """Write `rows` in the file's order; their blocks."""
        blocks = compensated(rows, self._planned.tensors[name].ggml_type, moments.parts(), self.dtype)
        self._file.write_at(self._planned.position(name), blocks)
        return blocks


class Refinement:
    """What `pipeline.convert` rounds the matrices of a compensated output with, from layer to layer.

    The inputs are those that the checkpoint makes of CALIBRATION_TOKENS tokens of the project's calibration texts. How
    far it has come is kept beside the output, so that it can be interrupted.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        n_ctx = min(CALIBRATION_CONTEXT, plan.hparams.max_position_embeddings)
        tokenizer = read_tokenizer(checkpoint.tokenizer_folder)
        found = sequences(calibration(), tokenizer, plan.hparams.eos_token_id, n_ctx, CALIBRATION_TOKENS)
        self._checkpoint = checkpoint
        self._plan = plan
        self._ids = [np.asarray(ids, np.int64) for ids in found]
        self._device = find_device("auto")

    @property
    def n_tokens(self) -> int:
        """Tokens of the calibration texts."""
        return sum(map(len, self._ids))

    @property
    def disk(self) -> int:
        """Bytes that it takes to keep how far this has come, while that is written anew."""
        return 2 * 2 * 4 * self.n_tokens * self._plan.hparams.hidden_size

    @property
    def memory(self) -> int:
        """Bytes that rounding takes, roughly: before a layer's largest matrix, or with the output matrix.

        The texts wait in both models. Of the matrix there are the checkpoint's values, the rounded ones and what both
        are multiplied as; of a part's columns H, the lack, the factor and what is computed on the way.
        """
        hparams, texts = self._plan.hparams, 2 * self.n_tokens
        product_bytes = product_type(self._device).itemsize
        waiting = texts * (4 * hparams.hidden_size + product_bytes * hparams.intermediate_size)
        squares: int = 6 * 4 * max(part.stop - part.start for part in column_parts(hparams.intermediate_size)) ** 2
        layer = waiting + 3 * 4 * hparams.hidden_size * hparams.intermediate_size
        output = 4 * hparams.hidden_size * (texts + 2 * hparams.vocab_size)
        return max(layer, output) + squares

    def resumes(self, planned: PlannedOutput) -> bool:
        """Whether an earlier run was interrupted in rounding this output, and what it had written is there."""
        return planned.mixture.compensated and partial_path(planned.path).exists() and self.n_finished(planned) > 0

    def n_finished(self, planned: PlannedOutput) -> int:
        """Layers that an earlier run has rounded."""
        finished = self._state(planned).load()
        return 0 if finished is None else finished.layers

    def __call__(self, planned: PlannedOutput, file: OutputFile, progress: Callable[[int, int], None]) -> None:
        """Round, and write into the file."""
        with Weights(self._checkpoint, self._plan.hparams, self._device) as weights:
            rounder = Compensation(weights, self._plan, planned, file)
            TwoPasses(weights, self._plan.hparams, rounder).run(self._ids, progress, self._state(planned))

    def _state(self, planned: PlannedOutput) -> StateFile:
        key = identity(self._checkpoint, self._ids) | {
            "recipe": recipe(),
            "products": str(product_type(self._device)),
            "header": hashlib.sha256(planned.header).hexdigest(),
        }
        return StateFile(rounding_state(planned.path), json.dumps(key))


def recipe() -> dict[str, Any]:
    """What decides the result besides the checkpoint, for the manifest."""
    texts = describe(calibration(), [])["sha256"]
    return {
        "method": METHOD,
        "texts": texts,
        "tokens": CALIBRATION_TOKENS,
        "damping": DAMPING,
        "scarcity": SCARCITY,
        "share": SHARE,
        "sweeps": SWEEPS,
    }
