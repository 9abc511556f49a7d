"""The fp16 reference: what a checkpoint computes, in float32 on its own weights, with one layer in memory at a time.

    shards --weights--> layer --forward--> hidden states of all sequences ... --head--> logits --> log-probabilities

All sequences go through a layer before the next one is read, so that the weights are read once. Peak memory is that of
the largest of these, besides 0.2 GB for Python and torch:

- while a layer computes: its weights as float32, the hidden states of all sequences, and what one sequence needs in
  the layer: fused queries, keys and values, or the feed-forward values before and after GELU. Attention is torch's
  blockwise kernel, which never holds the scores of all heads. For weblab-10b and 8 sequences of 512 tokens: 1.14 GB,
  8 * 512 * 4864 * 4 = 80 MB, and about 0.2 GB.
- while the head computes: HEAD_ROWS of its rows as float32 (160 MB), the hidden states, and the logits of as many
  whole sequences as make up HEAD_TOKENS positions, or of one that is longer: 1024 * 50277 * 4 = 206 MB; 412 MB for one
  of 2048 tokens.

The shards are memory-mapped; their pages are the system's to drop, and count as page cache.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from convert.errors import CheckpointError, ConversionError
from convert.model.gpt_neox import Hyperparameters, hyperparameters
from convert.reference.forward import Fork, Rotary, layer_norm, rotary, run_layer
from convert.reference.state import Finished, StateFile, identity
from convert.reference.weights import Weights
from convert.source.checkpoint import Checkpoint

HEAD_ROWS = 8192
"""Rows of the output matrix that are in memory as float32 at a time."""

HEAD_TOKENS = 1024
"""Positions whose logits are in memory at a time, or one sequence where that is longer."""

Observer = Callable[[str, torch.Tensor], None]
"""Called with a weight's GGUF name ("blk.0.attn_qkv.weight", "blk.0.attn_output.weight", "blk.0.ffn_up.weight",
"blk.0.ffn_down.weight", "output.weight") and the float32 inputs (n_tokens, n_columns) that it is multiplied with, of
one sequence at a time. They are on the device that computes, and not to be changed or kept."""

Progress = Callable[[int, int], None]
"""Called with the work that is done and all that was left when this run began, in bytes of the checkpoint: a weight
counts as two bytes, when all sequences met it, and as its share of them before."""


View = tuple[Rotary, torch.Tensor | None]
"""The angles of a sequence's positions, and what its tokens see where that is not all before them."""


@runtime_checkable
class ResumableObserver(Protocol):
    """An observer that can be interrupted: what it has collected is saved with the hidden states after each layer.

    Only such a one may be given together with `state`. In a run that goes on after layer N, it gets back what it had
    after layer N, and is called for the rest.
    """

    def __call__(self, name: str, inputs: torch.Tensor) -> None:
        """As Observer."""

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """All that was collected until now."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Put what `state_dict` gave in the place of all that was collected."""


def logits(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    *,
    observer: Observer | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
    device: str = "auto",
    forks: Sequence[Fork | None] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Teacher-forced logits (n_tokens, n_vocab) of each of the `sequences` of token ids, in their order.

    Every layer has run when the first are given. `state` is a file that is written after each layer; a run of the
    same checkpoint and sequences goes on where it ends, and it is removed with the last logits. A file of something
    else, or a damaged one, is replaced. With `state`, an observer has to be a ResumableObserver.

    `forks`: for each sequence where it parts into several, None where it is an ordinary one.

    `device`: "cpu", "cuda", "mps" or what else torch.device takes; "auto" is the first GPU that torch sees, else the
    CPU. Raises ConversionError for sequences that the model cannot read and for a device that is not there, at once;
    CheckpointError for a damaged checkpoint and OutputError for a `state` that cannot be written, on the way.
    """
    hparams = hyperparameters(checkpoint.config)
    ids = checked(sequences, hparams)
    parted = [None] * len(ids) if forks is None else list(forks)
    file = _state_file(checkpoint, ids, observer, state, parted)
    return _logits(checkpoint, hparams, ids, parted, find_device(device), observer, file, _Work(hparams, ids, progress))


@torch.inference_mode()
def observe_layers(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    observer: Observer,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> None:
    """Take the `sequences` through all layers for what the `observer` sees there; the output matrix is not read.

    Otherwise as `logits`.
    """
    hparams = hyperparameters(checkpoint.config)
    ids = checked(sequences, hparams)
    file = _state_file(checkpoint, ids, observer, state)
    if not ids:
        return
    found = find_device(device)
    with Weights(checkpoint, hparams, found) as weights:
        _run_layers(
            weights, hparams, ids, [None] * len(ids), found, observer, file, _Work(hparams, ids, progress, head=False)
        )
    if file is not None:
        file.remove()


def _state_file(
    checkpoint: Checkpoint,
    ids: Sequence[NDArray[np.int64]],
    observer: Observer | None,
    state: Path | None,
    forks: Sequence[Fork | None] = (),
) -> StateFile | None:
    if state is None:
        return None
    if observer is not None and not isinstance(observer, ResumableObserver):
        raise TypeError("with a state file, the observer has to be a ResumableObserver")
    kind = None if observer is None else f"{type(observer).__module__}.{type(observer).__qualname__}"
    parted = {"forks": repr(forks)} if any(forks) else {}
    return StateFile(state, json.dumps(identity(checkpoint, ids) | {"observer": kind} | parted))


def checked(sequences: Sequence[Sequence[int]], hparams: Hyperparameters) -> list[NDArray[np.int64]]:
    """The `sequences` as arrays. Raises ConversionError for those that the model cannot read."""
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    for number, ids in enumerate(arrays, 1):
        name = f"Sequence {number} of {len(arrays)}"
        if not len(ids):
            raise ConversionError(f"{name} has no tokens.", "Leave empty texts out.")
        if len(ids) > hparams.max_position_embeddings:
            raise ConversionError(
                f"{name} has {len(ids)} tokens, and the model reads {hparams.max_position_embeddings} at most.",
                "Cut the text into shorter ones.",
            )
        outside = ids[(ids < 0) | (ids >= hparams.vocab_size)]
        if len(outside):
            raise ConversionError(
                f"{name} holds the token id {outside[0]}, and the model's vocabulary has {hparams.vocab_size} entries.",
                "Tokenize the text with the checkpoint's own tokenizer.json.",
            )
    return arrays


def find_device(name: str) -> torch.device:
    """The device of that name, see `logits`. Raises ConversionError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch compiled without CUDA
        reason = str(error).partition("\n")[0]
        raise ConversionError(f"torch cannot compute on the device {name!r}: {reason}", "Use cpu or auto.") from None


class _Work:
    """Counts what is done, for the progress callback."""

    def __init__(
        self, hparams: Hyperparameters, ids: Sequence[NDArray[np.int64]], progress: Progress | None, head: bool = True
    ) -> None:
        hidden, feed_forward = hparams.hidden_size, hparams.intermediate_size
        self.layer = 4 * hidden * hidden + 2 * hidden * feed_forward
        self.head = hparams.vocab_size * hidden
        self._n_tokens = sum(map(len, ids))
        self._left = hparams.num_hidden_layers * self.layer + (self.head if head else 0)
        self._progress = progress
        self._done = 0

    def skip(self, n_weights: int) -> None:
        """An earlier run has done this."""
        self._left -= n_weights

    def add(self, n_weights: int, n_tokens: int) -> None:
        """`n_tokens` more have met `n_weights`."""
        self._done += n_weights * n_tokens
        if self._progress is not None:
            self._progress(2 * self._done // self._n_tokens, 2 * self._left)


@torch.inference_mode()
def _logits(
    checkpoint: Checkpoint,
    hparams: Hyperparameters,
    ids: Sequence[NDArray[np.int64]],
    forks: Sequence[Fork | None],
    device: torch.device,
    observer: Observer | None,
    state: StateFile | None,
    work: _Work,
) -> Iterator[NDArray[np.float32]]:
    if not ids:
        return
    with Weights(checkpoint, hparams, device) as weights:
        hidden = _run_layers(weights, hparams, ids, forks, device, observer, state, work)
        yield from _run_head(weights, hparams, hidden, observer, work)
    if state is not None:
        state.remove()


def _run_layers(
    weights: Weights,
    hparams: Hyperparameters,
    ids: Sequence[NDArray[np.int64]],
    forks: Sequence[Fork | None],
    device: torch.device,
    observer: Observer | None,
    state: StateFile | None,
    work: _Work,
) -> list[torch.Tensor]:
    """The hidden states (n_tokens, hidden_size) of each sequence after the last layer."""
    finished = state.load() if state is not None else None
    if finished is None:
        first = 0
        hidden = weights.gather("token_embd.weight", np.concatenate(ids))
    else:
        first = finished.layers
        hidden = torch.from_numpy(finished.hidden).to(device)
        work.skip(first * work.layer)
        if isinstance(observer, ResumableObserver):
            observer.load_state_dict(finished.observer)
    ends = list(accumulate(map(len, ids)))
    parts = [hidden[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    angles = rotary(hparams, max(map(len, ids)), device)
    views = [_view(fork, angles, device) for fork in forks]
    for number in range(first, hparams.num_hidden_layers):
        _run_one_layer(number, weights, hparams, parts, views, observer, work)
        if state is not None:
            collected = observer.state_dict() if isinstance(observer, ResumableObserver) else {}
            state.save(Finished(number + 1, hidden.cpu().numpy(), collected))
    return parts


def _view(fork: Fork | None, angles: Rotary, device: torch.device) -> View:
    if fork is None:
        return angles, None
    positions = fork.positions().to(device)
    return Rotary(angles.cos[positions], angles.sin[positions]), fork.mask().to(device)


def _run_one_layer(
    number: int,
    weights: Weights,
    hparams: Hyperparameters,
    parts: Sequence[torch.Tensor],
    views: Sequence[View],
    observer: Observer | None,
    work: _Work,
) -> None:
    """Take the hidden states of all sequences through a layer, in their place. Its weights are gone at the end."""
    layer = weights.layer(number)

    def observe(name: str, inputs: torch.Tensor) -> None:
        if observer is not None:
            observer(f"blk.{number}.{name}", inputs)

    for part, (angles, mask) in zip(parts, views, strict=True):
        part.copy_(run_layer(part, layer, hparams, angles, observe, mask))
        if not part.isfinite().all():
            raise _not_finite(f"layer {number}")
        work.add(work.layer, len(part))


def _run_head(
    weights: Weights, hparams: Hyperparameters, parts: Sequence[torch.Tensor], observer: Observer | None, work: _Work
) -> Iterator[NDArray[np.float32]]:
    norm, bias = weights.read("output_norm.weight"), weights.read("output_norm.bias")
    for group in _groups(parts):
        inputs = [layer_norm(part, norm, bias, hparams) for part in group]
        found = [np.empty((len(part), hparams.vocab_size), np.float32) for part in group]
        if observer is not None:
            for normalized in inputs:
                observer("output.weight", normalized)
        for start in range(0, hparams.vocab_size, HEAD_ROWS):
            rows = weights.read("output.weight", start, start + HEAD_ROWS)
            for normalized, result in zip(inputs, found, strict=True):
                result[:, start : start + len(rows)] = (normalized @ rows.T).cpu().numpy()
            del rows  # before the next are read
        while found:
            if not np.isfinite(found[0]).all():
                raise _not_finite("the output matrix")
            work.add(work.head, len(found[0]))
            yield found.pop(0)


def _groups(parts: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Whole sequences in their order, as many as make up HEAD_TOKENS tokens, at least one."""
    group: list[torch.Tensor] = []
    for part in parts:
        if group and sum(map(len, group)) + len(part) > HEAD_TOKENS:
            yield group
            group = []
        group.append(part)
    yield group


def _not_finite(where: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint computes NaN or infinite values in {where}.",
        "The checkpoint is damaged, or its training diverged.",
    )
