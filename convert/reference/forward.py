"""GPT-NeoX's layers in float32 on torch: what a layer makes of the hidden states of one sequence.

Source: transformers' `modeling_gpt_neox.py`. Weights have the names of the GGUF ("attn_qkv.weight") and the layout of
the checkpoint: the rows of `attn_qkv` are (head, [q, k, v], head_dim).
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from convert.model.gpt_neox import GELU_FORMS, Hyperparameters

Observe = Callable[[str, torch.Tensor], None]
"""Called with the name of a weight of the layer ("attn_qkv.weight") and the inputs (n_tokens, n_columns) it meets."""

Steps = Generator[tuple[str, torch.Tensor], None, torch.Tensor]
"""Gives the name of a weight of the layer and its inputs, before it is used; returns a result."""

MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
"""A layer's matrices in the order in which they are used."""


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of the angles by position, each (n_positions, rotary_dimensions / 2)."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Fork:
    """A sequence that goes on in several ways: `stem` tokens, then those of each branch, `branches` many.

    A branch sees the stem and itself, as if it stood behind the stem alone.
    """

    stem: int
    branches: Sequence[int]

    def positions(self) -> torch.Tensor:
        """The position of each token (n_tokens): every branch begins where the stem ends."""
        return torch.cat([torch.arange(self.stem), *(self.stem + torch.arange(length) for length in self.branches)])

    def mask(self) -> torch.Tensor:
        """What each token sees (n_tokens, n_tokens): True where it attends."""
        owner = torch.repeat_interleave(torch.arange(1 + len(self.branches)), torch.tensor([self.stem, *self.branches]))
        visible = (owner[:, None] == owner) | (owner == 0)
        return visible.tril()


def rotary(hparams: Hyperparameters, n_positions: int, device: torch.device) -> Rotary:
    """The rotary embedding of positions 0 to `n_positions` - 1."""
    n_dims = hparams.rotary_dimensions
    exponents = torch.arange(0, n_dims, 2, dtype=torch.float32) / n_dims
    frequencies = 1.0 / (hparams.rope_theta**exponents) / hparams.rope_scaling_factor
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), frequencies)
    return Rotary(angles.cos().to(device), angles.sin().to(device))


def run_layer(
    hidden: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    hparams: Hyperparameters,
    angles: Rotary,
    observe: Observe | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The hidden states (n_tokens, hidden_size) of one sequence after a layer with these `weights`.

    A bias that is not among them is zero. `angles` are those of n_tokens positions or more. `mask`: what each token
    sees, where that is not all before it. A matrix that is not in float32 is multiplied in its own type.
    """

    steps = layer_steps(hidden, weights, hparams, angles, mask)
    while True:
        try:
            name, inputs = next(steps)
        except StopIteration as end:
            result: torch.Tensor = end.value
            return result
        if observe is not None:
            observe(name, inputs)
        del inputs


def layer_steps(
    hidden: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    hparams: Hyperparameters,
    angles: Rotary,
    mask: torch.Tensor | None = None,
) -> Steps:
    """`run_layer` step by step: stops before each of MATRICES, which is looked up when it goes on.

    What is not needed any more is let go before it stops: the texts of a calibration all wait there.
    """

    def linear(name: str, inputs: torch.Tensor) -> Steps:
        yield f"{name}.weight", inputs
        return _linear(inputs, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def normalized(name: str, inputs: torch.Tensor) -> torch.Tensor:
        return layer_norm(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"], hparams)

    qkv = yield from linear("attn_qkv", normalized("attn_norm", hidden))
    mixed = _attention(qkv, hparams, angles, mask)
    del qkv
    attended = hidden + (yield from linear("attn_output", mixed))
    del mixed
    read = normalized("ffn_norm", hidden if hparams.use_parallel_residual else attended)
    del hidden
    up = yield from linear("ffn_up", read)
    del read
    approximate = "tanh" if GELU_FORMS[hparams.hidden_act] == "tanh" else "none"
    up = functional.gelu(up, approximate=approximate).to(weights["ffn_up.weight"].dtype)
    return attended + (yield from linear("ffn_down", up))


def _linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float32; the product alone is computed in the type of `weight`."""
    if weight.dtype == torch.float32:
        return functional.linear(inputs, weight, bias)
    result = functional.linear(inputs.to(weight.dtype), weight).float()
    return result if bias is None else result.add_(bias)


def layer_norm(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, hparams: Hyperparameters
) -> torch.Tensor:
    """LayerNorm over the last dimension, with the model's epsilon."""
    return functional.layer_norm(inputs, weight.shape, weight, bias, hparams.layer_norm_eps)


def _attention(qkv: torch.Tensor, hparams: Hyperparameters, angles: Rotary, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention from the fused (n_tokens, 3 * hidden_size); the heads side by side (n_tokens, hidden_size).

    It is causal without a mask.
    """
    n_tokens, heads = len(qkv), hparams.num_attention_heads
    query, key, value = qkv.view(n_tokens, heads, 3, hparams.head_dim).permute(2, 1, 0, 3)
    mixed = functional.scaled_dot_product_attention(
        _rotated(query, angles)[None],
        _rotated(key, angles)[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None,
    )
    return mixed[0].transpose(0, 1).reshape(n_tokens, hparams.hidden_size)


def _rotated(heads: torch.Tensor, angles: Rotary) -> torch.Tensor:
    """Queries or keys (heads, n_tokens, head_dim) with their first dimensions rotated; NeoX pairs i with i + half."""
    n_tokens = heads.shape[1]
    cos, sin = angles.cos[:n_tokens], angles.sin[:n_tokens]
    half = cos.shape[1]
    first, second = heads[..., :half], heads[..., half : 2 * half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, heads[..., 2 * half :]), dim=2)
