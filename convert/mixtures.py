"""Which tensor gets which type in Q4_K_M, Q8_0 and the others: llama.cpp's choice for gptneox, written as tables.

Mirrors `llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's `llama-quant.cpp`. There is one
`attn_qkv` and one `ffn_down` in a layer, so llama.cpp's counters are the layer's index here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as T

from convert.errors import UnsupportedModelError

Rule = Callable[["Layer"], bool]


@dataclass(frozen=True)
class Layer:
    """Where a tensor stands: layer `index` of `count`, quantized with an importance matrix or not."""

    index: int
    count: int
    has_imatrix: bool = False


def _use_more_bits(layer: Layer) -> bool:
    eighth = layer.count // 8
    return layer.index < eighth or layer.index >= 7 * layer.count // 8 or (layer.index - eighth) % 3 == 2


def _first(share: int) -> Rule:
    return lambda layer: layer.index < layer.count // share


def _always(_: Layer) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Mixture:
    """`base` for every matrix, except where one of `exceptions` holds: {tensor: [(rule, type), ...]}, first match."""

    name: str
    file_type: LlamaFileType
    base: T
    exceptions: Mapping[str, list[tuple[Rule, T]]] = field(default_factory=dict)


MIXTURES: dict[str, Mixture] = {
    mixture.name: mixture
    for mixture in (
        Mixture("F32", LlamaFileType.ALL_F32, T.F32),
        Mixture("F16", LlamaFileType.MOSTLY_F16, T.F16),
        Mixture("Q8_0", LlamaFileType.MOSTLY_Q8_0, T.Q8_0),
        Mixture("Q6_K", LlamaFileType.MOSTLY_Q6_K, T.Q6_K),
        Mixture(
            "Q5_K_M",
            LlamaFileType.MOSTLY_Q5_K_M,
            T.Q5_K,
            {"attn_qkv": [(_use_more_bits, T.Q6_K)], "ffn_down": [(_use_more_bits, T.Q6_K)]},
        ),
        Mixture(
            "Q4_K_M",
            LlamaFileType.MOSTLY_Q4_K_M,
            T.Q4_K,
            {"attn_qkv": [(_use_more_bits, T.Q6_K)], "ffn_down": [(_use_more_bits, T.Q6_K)]},
        ),
        Mixture(
            "Q4_K_S",
            LlamaFileType.MOSTLY_Q4_K_S,
            T.Q4_K,
            {"attn_qkv": [(lambda layer: layer.index < 4, T.Q5_K)], "ffn_down": [(_first(8), T.Q5_K)]},
        ),
        Mixture(
            "Q4_0",
            LlamaFileType.MOSTLY_Q4_0,
            T.Q4_0,
            {"ffn_down": [(lambda layer: layer.has_imatrix and _first(8)(layer), T.Q4_1)]},
        ),
        Mixture(
            "IQ4_XS",
            LlamaFileType.MOSTLY_IQ4_XS,
            T.IQ4_XS,
            {"ffn_down": [(lambda layer: not layer.has_imatrix and _first(8)(layer), T.Q5_K)]},
        ),
        Mixture(
            "Q3_K_M",
            LlamaFileType.MOSTLY_Q3_K_M,
            T.Q3_K,
            {
                "attn_qkv": [(lambda layer: layer.index < 2, T.Q5_K), (_always, T.Q4_K)],
                "ffn_down": [(_first(16), T.Q5_K), (_always, T.Q4_K)],
                "attn_output": [(_always, T.Q4_K)],
            },
        ),
    )
}

DEFAULT_MIXTURE = "Q4_K_M"

FALLBACKS: dict[T, T] = {T.IQ4_XS: T.IQ4_NL, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
"""What replaces a type with blocks of 256 where the rows are no multiple of 256. Rows that 32 does not divide: F16."""


def mixture(name: str) -> Mixture:
    """The mixture of that name, in any case. Raises UnsupportedModelError with the names there are."""
    try:
        return MIXTURES[name.strip().upper()]
    except KeyError:
        known = ", ".join(MIXTURES)
        raise UnsupportedModelError(f"There is no quantization called {name!r}.", f"Choose from: {known}.") from None


def tensor_type(mixture: Mixture, name: str, shape: tuple[int, ...], n_layers: int, has_imatrix: bool = False) -> T:
    """The ggml type of tensor `name` (a GGUF name) with `shape` (rows, columns) in a model of `n_layers`.

    Vectors are always F32. A shape that the type's blocks do not divide falls back as in llama.cpp.
    """
    if len(shape) == 1:
        return T.F32
    if mixture.base in (T.F32, T.F16):
        return mixture.base
    return _fall_back(_wanted_type(mixture, name, shape[-1], n_layers, has_imatrix), shape[-1])


def _wanted_type(mixture: Mixture, name: str, n_columns: int, n_layers: int, has_imatrix: bool) -> T:
    if name == "output.weight":
        return T.Q8_0 if mixture.base == T.Q8_0 or n_columns % _block_size(mixture.base) else T.Q6_K
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match:
        layer = Layer(int(match[1]), n_layers, has_imatrix)
        for rule, ggml_type in mixture.exceptions.get(match[2], ()):
            if rule(layer):
                return ggml_type
    return mixture.base


def _fall_back(wanted: T, n_columns: int) -> T:
    if n_columns % _block_size(wanted) == 0:
        return wanted
    smaller = FALLBACKS.get(wanted, wanted)
    return smaller if n_columns % _block_size(smaller) == 0 else T.F16


def _block_size(ggml_type: T) -> int:
    return GGML_QUANT_SIZES[ggml_type][0]
