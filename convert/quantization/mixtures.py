"""Which tensor gets which type in Q4_K_M, Q8_0 and the others: llama.cpp's choice for gptneox, written as tables.

Mirrors `llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's `llama-quant.cpp`. There is one
`attn_qkv` and one `ffn_down` in a layer, so llama.cpp's counters are the layer's index here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from gguf import GGML_QUANT_SIZES, LlamaFileType, quant_shape_to_byte_shape
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
    """`base` for every matrix, except where one of `exceptions` holds: {tensor: [(rule, type), ...]}, first match.

    The matrices of one that is `compensated` are rounded with regard to their inputs, see compensation.py.
    """

    name: str
    file_type: LlamaFileType
    base: T
    exceptions: Mapping[str, list[tuple[Rule, T]]] = field(default_factory=dict)
    compensated: bool = False


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

W4 = Mixture("W4", LlamaFileType.MOSTLY_Q4_K_M, T.Q4_K, compensated=True)
"""This project's own: Q4_K in all layers, with levels that make up for each other's errors; no larger than Q4_K_M."""

W3 = Mixture(
    "W3",
    LlamaFileType.MOSTLY_Q3_K_M,
    T.Q3_K,
    {
        matrix: [(lambda layer: layer.index == 0, T.Q5_K), (_first(18), T.Q4_K)]
        for matrix in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    },
    compensated=True,
)
"""The same in Q3_K, but for the first layers, where 3 bits hurt most; the 10B then takes 4.92 GB."""

ALL = {**MIXTURES, W4.name: W4, W3.name: W3}

DEFAULT_MIXTURE = W4.name
"""What is made when nobody says which."""

QUICK_MIXTURE = "Q4_K_M"
"""The same with --low-disk, which keeps no checkpoint to round by, and with --imatrix, which W4 has no use for."""

FALLBACKS: dict[T, T] = {T.IQ4_XS: T.IQ4_NL, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
"""What replaces a type with blocks of 256 where the rows are no multiple of 256. Rows that 32 does not divide: F16."""


def mixture(name: str) -> Mixture:
    """The mixture of that name, in any case. Raises UnsupportedModelError with the names there are."""
    try:
        return ALL[name.strip().upper()]
    except KeyError:
        known = ", ".join(ALL)
        raise UnsupportedModelError(f"There is no quantization called {name!r}.", f"Choose from: {known}.") from None


def tensor_types(
    mixture: Mixture, shapes: Mapping[str, tuple[int, ...]], n_layers: int, has_imatrix: bool = False
) -> dict[str, T]:
    """The ggml type of every tensor, from their shapes by GGUF name; see `tensor_type`."""
    types = {name: tensor_type(mixture, name, shape, n_layers, has_imatrix) for name, shape in shapes.items()}
    if mixture is W4:
        return _w4_types(types, shapes, n_layers)
    return types | _ends(T.Q6_K, shapes) if mixture is W3 else types


def _w4_types(types: dict[str, T], shapes: Mapping[str, tuple[int, ...]], n_layers: int) -> dict[str, T]:
    """Where 4 bits hurt most, in embedding and output, 6 bits if the file is then no larger than Q4_K_M, else 5."""
    limit = _n_bytes(tensor_types(MIXTURES["Q4_K_M"], shapes, n_layers), shapes)
    for ggml_type in (T.Q6_K, T.Q5_K):
        types |= _ends(ggml_type, shapes)
        if _n_bytes(types, shapes) <= limit:
            break
    return types


def _ends(ggml_type: T, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, T]:
    return {
        name: _fall_back(ggml_type, shapes[name][-1])
        for name in ("token_embd.weight", "output.weight")
        if name in shapes
    }


def _n_bytes(types: Mapping[str, T], shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(quant_shape_to_byte_shape(shape, types[name])) for name, shape in shapes.items())


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
