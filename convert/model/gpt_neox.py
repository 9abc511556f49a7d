"""GPT-NeoX: hyperparameters in both forms of config.json, and the map from Hugging Face's tensors to GGUF's.

Sources: transformers' `modeling_gpt_neox.py` for the names and layouts on one side, llama.cpp's `gptneox.cpp` for
those on the other.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source.names import is_buffer
from convert.source.settings import MORE_EOS

GELU_FORMS: Mapping[str, Literal["erf", "tanh"]] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""Activations that are GELU, and in which form. llama.cpp's gptneox computes the tanh form for all of them."""

EMBEDDING = "gpt_neox.embed_in"
OUTPUT = "embed_out"
"""Modules, by their names in a checkpoint's files."""

MODEL_TENSORS = {
    "gpt_neox.embed_in.weight": "token_embd.weight",
    "gpt_neox.final_layer_norm.weight": "output_norm.weight",
    "gpt_neox.final_layer_norm.bias": "output_norm.bias",
    "embed_out.weight": "output.weight",
}
LAYER_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "input_layernorm.bias": "attn_norm.bias",
    "attention.query_key_value.weight": "attn_qkv.weight",
    "attention.query_key_value.bias": "attn_qkv.bias",
    "attention.dense.weight": "attn_output.weight",
    "attention.dense.bias": "attn_output.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "post_attention_layernorm.bias": "ffn_norm.bias",
    "mlp.dense_h_to_4h.weight": "ffn_up.weight",
    "mlp.dense_h_to_4h.bias": "ffn_up.bias",
    "mlp.dense_4h_to_h.weight": "ffn_down.weight",
    "mlp.dense_4h_to_h.bias": "ffn_down.bias",
}
"""`gpt_neox.layers.N.` + the key becomes `blk.N.` + the value. Buffers are dropped on purpose."""

OPTIONAL_BIASES = frozenset({"attention.query_key_value.bias", "attention.dense.bias"})
"""Absent where the config says `attention_bias: false`; llama.cpp wants them all the same, as zeros."""

_LAYER_NAME = re.compile(r"gpt_neox\.layers\.(0|[1-9][0-9]{0,8})\.(.+)")
_MAX_SIZE = 2**31 - 1  # llama.cpp gives the sizes as int32
_CONFIG_REMEDY = "Take config.json from the original checkpoint; this one is damaged or was edited."


@dataclass(frozen=True)
class Hyperparameters:
    """What config.json says of the architecture, in transformers' names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    layer_norm_eps: float
    use_parallel_residual: bool
    hidden_act: str
    tie_word_embeddings: bool
    rotary_dimensions: int
    rope_theta: float
    rope_scaling_factor: float
    bos_token_id: int
    eos_token_id: int
    more_eos_token_ids: tuple[int, ...] = ()
    """Besides `eos_token_id`, what ends an answer too."""

    @property
    def head_dim(self) -> int:
        """Values of one attention head."""
        return self.hidden_size // self.num_attention_heads


def hyperparameters(config: Mapping[str, Any]) -> Hyperparameters:
    """Read a GPT-NeoX config.json, in the form of old transformers (`rotary_pct`) or of version 5 (`rope_parameters`).

    A `rope_scaling` goes before `rope_parameters`, and a model without a token that begins a text has its end token
    for it, which is never put in front of anything.

    What is absent has the default of transformers' GPTNeoXConfig. Raises CheckpointError for missing or impossible
    sizes and UnsupportedModelError for what llama.cpp's gptneox has no way to express.
    """
    architectures = config.get("architectures") or []
    named = architectures if isinstance(architectures, list) else [architectures]
    model_type = config.get("model_type", "gpt_neox")
    others = [name for name in (*named, model_type) if name not in ("GPTNeoXForCausalLM", "gpt_neox")]
    if others:
        raise UnsupportedModelError(
            f"The checkpoint is a {others[0]}, not a GPTNeoXForCausalLM.",
            "Only GPT-NeoX models can be converted here; llama.cpp's convert_hf_to_gguf.py knows many others.",
        )
    hidden_size = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    if hidden_size % heads:
        raise CheckpointError(
            f"config.json: {heads} attention heads (num_attention_heads) do not divide a hidden_size of {hidden_size}.",
            _CONFIG_REMEDY,
        )
    activation = str(config.get("hidden_act", "gelu"))
    if activation not in GELU_FORMS:
        raise UnsupportedModelError(
            f"config.json: hidden_act is {activation!r}, but llama.cpp's gptneox always computes GELU.",
            "This model cannot run on llama.cpp without giving other answers.",
        )
    vocab_size = _size(config, "vocab_size")
    rope_parameters = _section(config, "rope_parameters")
    rope = _section(config, "rope_scaling") or rope_parameters
    fraction = _new_or_old(rope, "partial_rotary_factor", config, "rotary_pct", 0.25)
    rotary_dimensions = int(hidden_size // heads * fraction)
    if rotary_dimensions <= 0 or rotary_dimensions % 2 or fraction > 1:
        raise UnsupportedModelError(
            f"config.json: a rotary fraction of {fraction} gives {rotary_dimensions} of {hidden_size // heads} "
            "dimensions; llama.cpp rotates an even number of them, at least 2.",
            _CONFIG_REMEDY,
        )
    eos, *more_eos = _end_tokens(config, vocab_size)
    return Hyperparameters(
        hidden_size=hidden_size,
        num_hidden_layers=_size(config, "num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=_size(config, "intermediate_size"),
        vocab_size=vocab_size,
        max_position_embeddings=_size({"max_position_embeddings": 2048, **config}, "max_position_embeddings"),
        layer_norm_eps=_positive(config, "layer_norm_eps", 1e-5),
        use_parallel_residual=_flag(config, "use_parallel_residual", True),
        hidden_act=activation,
        tie_word_embeddings=_flag(config, "tie_word_embeddings", False),
        rotary_dimensions=rotary_dimensions,
        rope_theta=_new_or_old(rope, "rope_theta", config, "rotary_emb_base", 10000.0),
        rope_scaling_factor=_linear_scaling(rope),
        bos_token_id=eos if config.get("bos_token_id", 0) is None else _bos_token(config, vocab_size),
        eos_token_id=eos,
        more_eos_token_ids=tuple(more_eos),
    )


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_SIZE:
        raise _wrong(key, f"a whole number from 1 to {_MAX_SIZE}", value)
    return value


def _bos_token(config: Mapping[str, Any], vocab_size: int) -> int:
    return _token_ids("config.json: bos_token_id", config.get("bos_token_id", 0), vocab_size)[0]


def _end_tokens(config: Mapping[str, Any], vocab_size: int) -> list[int]:
    """All that end an answer, each once, config.json's own first: the one that stands in for a beginning, too."""
    own = config.get("eos_token_id", 2)
    if own is None:
        raise CheckpointError(
            f"Neither config.json nor generation_config.json nor the tokenizer's files name a token below the "
            f"vocab_size of {vocab_size} that ends an answer: config.json: eos_token_id is None.",
            "Put its id into config.json as eos_token_id.",
        )
    found = _token_ids("config.json: eos_token_id", own, vocab_size)
    if more := config.get(MORE_EOS):
        found += _token_ids("generation_config.json: eos_token_id", more, vocab_size)
    return list(dict.fromkeys(found))


def _token_ids(key: str, value: Any, vocab_size: int) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids):
        raise CheckpointError(
            f"{key} should be a token id below the vocab_size of {vocab_size}, and is {value!r}.", _CONFIG_REMEDY
        )
    return list(ids)


def _positive(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _wrong(key, "a positive number", value)
    return float(value)


def _new_or_old(rope: Mapping[str, Any], key: str, config: Mapping[str, Any], old_key: str, default: float) -> float:
    return _positive(rope, key) if key in rope else _positive(config, old_key, default)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise _wrong(key, "true or false", value)
    return value


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise _wrong(key, "an object or null", value)
    return value or {}


def _wrong(key: str, meant: str, value: Any) -> CheckpointError:
    return CheckpointError(f"config.json: {key} should be {meant}, and is {value!r}.", _CONFIG_REMEDY)


def _linear_scaling(rope: Mapping[str, Any]) -> float:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return 1.0
    if kind == "linear":
        return _positive(rope, "factor")
    raise UnsupportedModelError(
        f"config.json: rope scaling of type {kind!r} cannot be expressed in llama.cpp's gptneox.",
        "Remove the scaling from config.json to convert the model for its original context length.",
    )


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF.

    `source` is the checkpoint's name, None for a bias that is not there (zeros). `shape` is (rows, columns) or
    (values,), as in numpy. `row_order`, where it is not None, gives for each row of the GGUF's tensor the row of the
    checkpoint's.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    row_order: NDArray[np.intp] | None = None


def map_tensors(hparams: Hyperparameters, names: Collection[str]) -> list[Tensor]:
    """All tensors of the GGUF in the model's order, from the `names` in the checkpoint.

    Raises CheckpointError when names are missing, or there that no GPT-NeoX has.
    """
    unknown = [name for name in names if not is_known(name, hparams.num_hidden_layers)]
    if unknown:
        raise CheckpointError(
            f"The checkpoint holds tensors that a GPT-NeoX of {hparams.num_hidden_layers} layers has not: "
            + _some(unknown),
            "config.json and the shards seem to belong to different models.",
        )
    shapes = _shapes(hparams)
    split_qkv = _split_qkv(hparams)

    def layer_tensor(layer: int, source: str, target: str) -> Tensor:
        name = f"gpt_neox.layers.{layer}.{source}"
        absent = source in OPTIONAL_BIASES and name not in names
        return Tensor(
            f"blk.{layer}.{target}",
            None if absent else name,
            shapes[source],
            split_qkv if "query_key_value" in source and not absent else None,
        )

    layers = [
        layer_tensor(layer, source, target)
        for layer in range(hparams.num_hidden_layers)
        for source, target in LAYER_TENSORS.items()
    ]
    top = {source: Tensor(target, source, shapes[source]) for source, target in MODEL_TENSORS.items()}
    if hparams.tie_word_embeddings:
        top["embed_out.weight"] = Tensor("output.weight", "gpt_neox.embed_in.weight", shapes["embed_out.weight"])
    embedding, *rest = top.values()
    tensors = [embedding, *layers, *rest]
    missing = [tensor.source for tensor in tensors if tensor.source is not None and tensor.source not in names]
    if missing:
        raise CheckpointError(
            f"The checkpoint lacks {len(missing)} tensors: {_some(missing)}", "Is a shard missing? Download it again."
        )
    return tensors


def is_known(name: str, n_layers: int) -> bool:
    """Whether a GPT-NeoX checkpoint of `n_layers` may hold a tensor of this name, buffers included."""
    match = _LAYER_NAME.fullmatch(name)
    if match:
        return int(match[1]) < n_layers and (match[2] in LAYER_TENSORS or is_buffer(name))
    return name in MODEL_TENSORS or is_buffer(name)


def tensor_names(hparams: Hyperparameters) -> list[str]:
    """Return the names of all tensors that a checkpoint of this model may have, besides buffers."""
    layers = range(hparams.num_hidden_layers)
    return [*MODEL_TENSORS, *(f"gpt_neox.layers.{layer}.{name}" for layer in layers for name in LAYER_TENSORS)]


def linear_modules(n_layers: int) -> list[str]:
    """Return the names of the modules of `n_layers` and of the output that multiply by a matrix."""
    matrices = [name.removesuffix(".weight") for name in LAYER_TENSORS if not name.endswith(("norm.weight", ".bias"))]
    return [*(f"gpt_neox.layers.{layer}.{matrix}" for layer in range(n_layers) for matrix in matrices), OUTPUT]


def tensor_shapes(hparams: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a checkpoint of this model may have, besides buffers, by its name."""
    shapes = _shapes(hparams)
    return {name: shapes[_within_layer(name)] for name in tensor_names(hparams)}


def _within_layer(name: str) -> str:
    match = _LAYER_NAME.fullmatch(name)
    return match[2] if match else name


def _shapes(hparams: Hyperparameters) -> dict[str, tuple[int, ...]]:
    hidden, feed_forward = hparams.hidden_size, hparams.intermediate_size
    matrices = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (feed_forward, hidden),
        "mlp.dense_4h_to_h": (hidden, feed_forward),
    }
    norms = ("input_layernorm", "post_attention_layernorm", "gpt_neox.final_layer_norm")
    return {
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": shape[:1] for name, shape in matrices.items()},
        **{f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")},
        "gpt_neox.embed_in.weight": (hparams.vocab_size, hidden),
        "embed_out.weight": (hparams.vocab_size, hidden),
    }


def _split_qkv(hparams: Hyperparameters) -> NDArray[np.intp]:
    """The fused rows are laid out (head, [q, k, v], head_dim); llama.cpp wants ([q, k, v], head, head_dim)."""
    rows = np.arange(3 * hparams.hidden_size).reshape(hparams.num_attention_heads, 3, hparams.head_dim)
    return rows.transpose(1, 0, 2).reshape(-1)


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
