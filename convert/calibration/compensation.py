"""W4's and W3's rounding: the errors of neighbouring columns cancel in what the model computes.

A weight rounded up is made up for by its neighbours, as far as their inputs move together: columns are rounded one
after the other, and each makes up for the errors of those before it. That is the method of GPTQ (Frantar et al. 2022,
https://arxiv.org/abs/2210.17323), here on ggml's own grids: each super-block's scales are found by ggml's search on the
columns as they should be by then, and then levels and scales are set anew, see `rounding`.

Some matrices also make up for what was rounded before them (`moments.follows`): the inputs X are those of the rounded
model, where the full one has Y (GPTAQ, Li et al. 2025, https://arxiv.org/abs/2504.02692). What all that does to the
mean of an output is taken back in its bias. So the file is an ordinary GGUF, of the same size.

    two passes through the layers --(X and Y)--> moments of a matrix --> its blocks, and its bias --> the .partial file
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from convert.quantization.block_types import GRIDS, SUPER_BLOCK
from convert.quantization.dequantize import dequantize_rows
from convert.quantization.grid import read_grid, with_values
from convert.quantization.quantize import quantize_rows
from convert.quantization.rounding import SWEEPS, QuadraticForm, round_super_block
from convert.reference.reference import find_device
from convert.reference.state import StateFile, identity
from convert.reference.texts import calibration, describe, read_tokenizer, sequences
from convert.reference.weights import Weights
from convert.source.checkpoint import Checkpoint
from convert.writing.output import OutputFile, rounding_state
from convert.writing.plan import Plan, PlannedOutput, available_cores
from weblab_local.files import partial_path

Floats = NDArray[np.float32]

METHOD = "GPTAQ about exact means, damped by tokens, with biases, levels and scales set anew block by block"
"""Changed when the same checkpoint and texts give another file than before."""

DAMPING = 0.05
"""Added to X^T X's diagonal, as a share of its mean: columns are taken for a little less dependent than they seem."""

SCARCITY = 0.195
"""For each column to a row of X the same, where that is more: few rows make columns look more dependent than they are.
The 10B has one column to a token. See `docs/figures.md`."""

SHARE = 0.5
"""Of the way from what a matrix makes of X to what it makes of Y; all of it would follow the texts too closely."""

CALIBRATION_TOKENS = 8000
CALIBRATION_CONTEXT = 512
"""Tokens in all, and in a sequence at most."""

WIDE = 4096
TOKENS_IF_WIDE = 5000
"""From that hidden size on fewer tokens: 1000 cost a layer of the 10B 4 s. What a small model with as few for each
column loses by that is in `docs/figures.md`."""

_TASKS = 2
"""Shares of the rows for each thread: many small ones take longer, and of one each all wait for the slowest core."""

_ROWS_AT_ONCE = 1 << 13
"""Rows that are rounded at a time: what makes up for the lack in them takes as much memory as they do."""


@dataclass(frozen=True)
class Rounded:
    """Rows in blocks, and what these are off by."""

    blocks: NDArray[np.uint8]
    """(n_rows, bytes)"""
    errors: torch.Tensor
    """What the rows have more than the blocks decode to, in the type of the products: (n_rows, n_columns)."""
    mean_error: torch.Tensor
    """What that makes of the inputs' mean: float32 (n_rows,), in the processor's memory."""


@dataclass(frozen=True)
class _Corrections:
    """What the weights in each super-block of a part are changed by before they are rounded."""

    forms: list[QuadraticForm]
    """What errors in each super-block count."""
    of_errors: torch.Tensor
    """By what the errors before a super-block are multiplied, in its columns above it: (n_columns, n_columns)."""
    of_weights: torch.Tensor | None
    """By what the exact weights are, to make up for the lack: (n_columns, n_columns)."""

    @classmethod
    def by(cls, part: Part, dtype: torch.dtype) -> "_Corrections":
        """Those that a part's moments ask for, to be multiplied in `dtype`."""
        factor, steer = _factor(part), None
        if part.lack is not None:
            steer = torch.linalg.solve_triangular(factor, SHARE * part.lack, upper=True).T
        forms = []
        for start in range(0, len(factor), SUPER_BLOCK):
            here = slice(start, start + SUPER_BLOCK)
            inside = factor[here, here].contiguous()
            forms.append(QuadraticForm.of(inside.cpu().numpy(), (inside @ inside.T).cpu().numpy()))
            for change in (factor[:start, here],) if steer is None else (factor[:start, here], steer[:, here]):
                change.copy_(torch.linalg.solve_triangular(inside, change, upper=True, left=False))
        return cls(forms, factor.to(dtype), None if steer is None else steer.to(dtype))


def compensated(
    rows: torch.Tensor, ggml_type: GGMLQuantizationType, parts: Iterable[Part], dtype: torch.dtype = torch.float32
) -> Rounded:
    """Quantize `rows`, float32 (n_rows, n_columns), to `ggml_type`, one of GRIDS, with compensation.

    `dtype` is what products are computed in, on the device where the parts are.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(map(partial(_compensate, rows, ggml_type, dtype, pool), parts))  # which keeps no part
    if len(found) == 1:
        return found[0]
    return Rounded(
        np.concatenate([part.blocks for part in found], axis=1),
        torch.cat([part.errors for part in found], dim=1),
        torch.stack([part.mean_error for part in found]).sum(dim=0),
    )


def bias_shift(rows: torch.Tensor, rounded: Rounded, moments: Moments) -> torch.Tensor:
    """What the bias of `rows` (n_rows, n_columns) has to take back once they are `rounded`: (n_rows,)."""
    return rounded.mean_error + rows @ moments.mean_lack.float()


def _compensate(
    rows: torch.Tensor, ggml_type: GGMLQuantizationType, dtype: torch.dtype, pool: ThreadPoolExecutor, part: Part
) -> Rounded:
    """A part's columns."""
    corrections = _Corrections.by(part, dtype)
    exact = rows[:, part.columns]
    found = Rounded(
        np.empty((len(rows), len(corrections.forms) * GRIDS[ggml_type].layout.size), np.uint8),
        torch.empty_like(exact, dtype=dtype, device=corrections.of_errors.device),
        torch.zeros(len(rows)),
    )
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        part_of_found = Rounded(found.blocks[some], found.errors[some], found.mean_error[some])
        _round_with(exact[some], ggml_type, corrections, part.mean, pool, part_of_found)
    return found


def _round_with(
    exact: torch.Tensor,
    ggml_type: GGMLQuantizationType,
    corrections: _Corrections,
    mean: torch.Tensor,
    pool: ThreadPoolExecutor,
    rounded: Rounded,
) -> None:
    """Fill in what `exact` (n_rows, n_columns) is `rounded` to, each super-block with its corrections."""
    n_rows, size, dtype = len(exact), GRIDS[ggml_type].layout.size, corrections.of_errors.dtype
    steered = None
    if corrections.of_weights is not None:
        steered = product(exact.to(corrections.of_weights), corrections.of_weights, dtype)
    error = torch.empty(n_rows, SUPER_BLOCK)
    rows_each = -(-n_rows // (_TASKS * available_cores()))
    shares = [slice(first, first + rows_each) for first in range(0, n_rows, rows_each)]
    for number, form in enumerate(corrections.forms):
        start = number * SUPER_BLOCK
        here = slice(start, start + SUPER_BLOCK)
        change = product(rounded.errors[:, :start], corrections.of_errors[:start, here], dtype)
        if steered is not None:
            change += steered[:, here]
        blocks = rounded.blocks[:, number * size : (number + 1) * size]
        round_rows = partial(
            _round_rows, exact[:, here].numpy(), change.cpu().numpy(), blocks, error.numpy(), ggml_type, form
        )
        for _ in pool.map(round_rows, shares):
            pass
        rounded.errors[:, here] = error
        rounded.mean_error.add_(error @ mean[here])


def _round_rows(
    exact: Floats,
    change: Floats,
    blocks: NDArray[np.uint8],
    errors: Floats,
    ggml_type: GGMLQuantizationType,
    form: QuadraticForm,
    share: slice,
) -> None:
    """Fill in a share of the super-blocks (n_rows, bytes) of `exact` (n_rows, 256), and their errors (n_rows, 256)."""
    wanted = exact[share] + change[share]
    found = quantize_rows(wanted, ggml_type, form.importance)
    grid, values = round_super_block(wanted, ggml_type, read_grid(found, ggml_type), form)
    blocks[share] = with_values(found, ggml_type, grid, values)
    np.subtract(exact[share], values, out=errors[share])


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
            used = self._weights.gather(name, ids).cpu().numpy()
            blocks = quantize_rows(used, ggml_type, self._planned.importance.get(name))
            return torch.from_numpy(dequantize_rows(blocks, ggml_type))
        rows = self._weights.read(name).cpu()
        blocks = compensated(rows, ggml_type, [self._readers_of_the_embedding()], self.dtype).blocks
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
        return Part(slice(0, n_columns), product, None, torch.zeros(n_columns), n_rows)

    def is_rounded(self, name: str) -> bool:
        """Whether that matrix is rounded here."""
        return self._planned.is_compensated(name)

    def flush(self) -> None:
        """What was rounded until now is on the disk."""
        self._file.flush()

    def layer_matrix(self, name: str, weight: torch.Tensor, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's matrix and its bias; both as the file has them, in the checkpoint's order of rows.

        `name` is that of the weight, `weight` (n_rows, n_columns) what the checkpoint has. The matrix that is returned
        is in the type of products, the bias in float32.
        """
        matrix, bias = self._tensors[name], self._tensors[name.removesuffix("weight") + "bias"]
        order: torch.Tensor | slice = slice(None)
        back = order
        if matrix.row_order is not None:
            order = torch.from_numpy(matrix.row_order)
            back = order.argsort()
        rows = weight.cpu()[order]
        rounded = self._write(name, rows, moments)
        values = torch.zeros(len(rows)) if bias.source is None else self._weights.read(bias.name).cpu()
        values = values[order] + bias_shift(rows, rounded, moments)
        self._file.write_at(self._planned.position(bias.name), values.numpy())
        as_rounded = rounded.errors[back]
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            error = as_rounded[start : start + _ROWS_AT_ONCE]
            torch.sub(weight[start : start + _ROWS_AT_ONCE], error, out=error)  # in the errors' type
        return as_rounded, values[back].to(weight.device)

    def output(self, moments: Moments) -> None:
        """Write the output matrix."""
        name = "output.weight"
        self._write(name, self._weights.read(name).cpu(), moments)

    def _write(self, name: str, rows: torch.Tensor, moments: Moments) -> Rounded:
        """Write `rows` in the file's order."""
        rounded = compensated(rows, self._planned.tensors[name].ggml_type, moments.parts(), self.dtype)
        self._file.write_at(self._planned.position(name), rounded.blocks)
        return rounded


def calibration_tokens(hidden_size: int) -> int:
    """How many tokens of the calibration texts a model is rounded by."""
    return CALIBRATION_TOKENS if hidden_size < WIDE else min(CALIBRATION_TOKENS, TOKENS_IF_WIDE)


class Refinement:
    """What `pipeline.convert` rounds the matrices of a compensated output with, from layer to layer.

    The inputs are those that the checkpoint makes of `calibration_tokens` tokens of the project's calibration texts.
    How far it has come is kept beside the output, so that it can be interrupted.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        n_ctx = min(CALIBRATION_CONTEXT, plan.hparams.max_position_embeddings)
        tokenizer = read_tokenizer(checkpoint.tokenizer_folder)
        n_tokens = calibration_tokens(plan.hparams.hidden_size)
        found = sequences(calibration(), tokenizer, plan.hparams.eos_token_id, n_ctx, n_tokens)
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

        The texts wait in both models. Of the matrix there are the checkpoint's values, what they are multiplied as, and
        errors; of a part's columns H, the lack, the factor and what is computed on the way.
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
        "tokens_if_wide": TOKENS_IF_WIDE,
        "damping": DAMPING,
        "scarcity": SCARCITY,
        "share": SHARE,
        "sweeps": SWEEPS,
    }
