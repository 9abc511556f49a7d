"""What llama.cpp takes for granted of a GPT-NeoX: it ends the process, or never returns, where a file is otherwise.

The names of the keys are in llama-arch.cpp; what is asserted of them in llama-model.cpp (`load_hparams`),
llama-vocab.cpp, models/gptneox.cpp, and in ggml-cpu's ops.cpp (rope, norm, get_rows) and binary-ops.cpp.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weblab_local.errors import ModelFileError
from weblab_local.i18n import _
from weblab_local.llama.gguf_header import ARCHITECTURE, Header, read_arrays, read_header

_MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS."""

_ALIGNMENT = 32
"""TENSOR_ALIGNMENT of ggml, which a mapped tensor has to have; `general.alignment` could be anything."""

_F32 = 0
_MATRIX_TYPES = frozenset({_F32, 1, 2, 3, 6, 7, 8, *range(10, 15), *range(16, 24), 29, 30, 34, 35, 39, 40, 41, 42})
"""`enum ggml_type`: those that rows can be taken of and multiplied with on the CPU."""

_TOKENIZER = "gpt2"
_RAW_SPLITS = ("gemma4", "sarvam-moe", "whitespace")
"""Values of tokenizer.ggml.pre that leave spaces in what is merged, which llama.cpp asserts not to be there."""

_TOKEN_TYPES = range(6)
"""`enum llama_token_type` without BYTE, which only other kinds of vocabulary have."""


class _Rule(NamedTuple):
    """A key's type, whether it has to be there, and whether a value can be."""

    type: str
    required: bool
    allows: Callable[[Any], bool]


def _count(n: int) -> bool:
    return 0 < n < 2**31


def _not_negative(number: float) -> bool:
    return math.isfinite(number) and number >= 0


_RULES: Mapping[str, _Rule] = {
    "context_length": _Rule("u32", True, _count),
    "embedding_length": _Rule("u32", True, _count),
    "feed_forward_length": _Rule("u32", True, _count),
    "attention.head_count": _Rule("u32", True, _count),
    "block_count": _Rule("u32", True, lambda n: 0 < n <= _MOST_LAYERS),
    "attention.layer_norm_epsilon": _Rule("f32", True, _not_negative),
    "use_parallel_residual": _Rule("bool", True, lambda _value: True),
    "rope.dimension_count": _Rule("u32", False, lambda n: n > 0 and n % 2 == 0),
    "rope.freq_base": _Rule("f32", False, lambda base: math.isfinite(base) and base > 0),
    "rope.scaling.type": _Rule("str", False, ("none", "linear", "yarn", "longrope").__contains__),
    "rope.scaling.factor": _Rule("f32", False, _not_negative),
    "rope.scale_linear": _Rule("f32", False, _not_negative),
    "rope.scaling.attn_factor": _Rule("f32", False, math.isfinite),
    "rope.scaling.original_context_length": _Rule("u32", False, _count),
    "attention.causal": _Rule("bool", False, bool),
} | dict.fromkeys(
    (
        "pooling_type",
        "nextn_predict_layers",
        "expert_count",
        "expert_used_count",
        "expert_group_count",
        "expert_group_used_count",
    ),
    _Rule("u32", False, lambda n: n == 0),
)
"""By the key without the architecture's name."""


def read_gptneox(path: Path) -> Header:
    """Read the header of a GPT-NeoX. Raises ModelFileError as `read_header` and `require_gptneox` do."""
    header = read_header(path)
    require_gptneox(header)
    return header


def require_gptneox(header: Header) -> None:
    """Raise ModelFileError unless the file holds a GPT-NeoX that llama.cpp can load and compute, and all of it."""
    found = header.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise ModelFileError(
            _("{path} is a {found} model; this program runs {ours} models only.").format(
                path=header.path, found=found, ours=ARCHITECTURE
            ),
            _("llama.cpp's own tools, Ollama or LM Studio run others."),
        )
    end = max((tensor.offset + tensor.nbytes for tensor in header.tensors.values()), default=0)
    size = header.path.stat().st_size
    if size < end:
        raise ModelFileError(
            _("{path} is truncated: it has {size} of {end} bytes.").format(path=header.path, size=size, end=end),
            _remedy(),
        )
    for key, rule in _RULES.items():
        _require(header, f"{ARCHITECTURE}.{key}", rule)
    _require_heads(header)
    _require_tensors(header, _require_vocabulary(header))


def _require(header: Header, key: str, rule: _Rule) -> None:
    if key not in header.types and not rule.required:
        return
    value = header.metadata.get(key)
    if header.types.get(key) != rule.type or not rule.allows(value):
        raise _impossible(header, key)


def _require_heads(header: Header) -> None:
    """The size of a head follows from the heads' number; what says it again may not say something else."""
    n_embd, n_head = header.hparam("embedding_length"), header.hparam("attention.head_count")
    if n_embd % n_head:
        raise _impossible(header, f"{ARCHITECTURE}.attention.head_count")
    head = n_embd // n_head
    if f"{ARCHITECTURE}.rope.dimension_count" not in header.types and head % 2:
        raise _impossible(header, f"{ARCHITECTURE}.attention.head_count")
    _require(header, f"{ARCHITECTURE}.rope.dimension_count", _Rule("u32", False, lambda n: n <= head))
    same = {"attention.head_count_kv": n_head, "embedding_length_out": n_embd}
    same |= {"attention.key_length": head, "attention.value_length": head}
    for key, value in same.items():
        _require(header, f"{ARCHITECTURE}.{key}", _Rule("u32", False, value.__eq__))


def _require_vocabulary(header: Header) -> int:
    """The number of tokens, which are distinct and of types that a byte-level BPE has."""
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind != _TOKENIZER or header.metadata.get("tokenizer.ggml.pre") in _RAW_SPLITS:
        raise ModelFileError(
            _("{path} has a tokenizer of another kind than GPT-NeoX's, which is a byte-level BPE.").format(
                path=header.path
            ),
            _remedy(),
        )
    names = [f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges")]
    for key, of in zip(names, ("[str]", "[i32]", "[str]"), strict=True):
        if header.types.get(key, of) != of:
            raise _impossible(header, key)
    tokens, types = read_arrays(header.path, *names[:2])
    # llama.cpp gives an empty token a name, which another may have.
    distinct = {token or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)}
    if not tokens or len(distinct) < len(tokens):
        raise _impossible(header, names[0])
    if types and (len(types) < len(tokens) or not set(types) <= set(_TOKEN_TYPES)):
        raise _impossible(header, names[1])
    in_range = _Rule("u32", False, range(len(tokens)).__contains__)
    for key in ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"):
        _require(header, key, in_range)
    return len(tokens)


def _require_tensors(header: Header, n_vocab: int) -> None:
    """Each tensor that llama.cpp looks for is there, with the shape that follows and a type that it computes with."""
    shapes = _shapes(header, n_vocab)
    for name, shape in shapes.items():
        tensor = header.tensors.get(name)
        types = _MATRIX_TYPES if len(shape) > 1 else (_F32,)
        if tensor is None or tensor.shape != shape or tensor.ggml_type not in types or tensor.offset % _ALIGNMENT:
            raise ModelFileError(
                _("{path} is damaged: its tensors are not those of the model that its metadata describes.").format(
                    path=header.path
                ),
                _remedy(),
            )


def _shapes(header: Header, n_vocab: int) -> Mapping[str, tuple[int, ...]]:
    n_embd, n_ff = header.hparam("embedding_length"), header.hparam("feed_forward_length")
    layer = {
        "attn_norm": (n_embd,),
        "attn_qkv": (n_embd, 3 * n_embd),
        "attn_output": (n_embd, n_embd),
        "ffn_norm": (n_embd,),
        "ffn_up": (n_embd, n_ff),
        "ffn_down": (n_ff, n_embd),
    }
    parts: dict[str, tuple[int, ...]] = {"output_norm": (n_embd,)}
    for index in range(header.hparam("block_count")):
        parts |= {f"blk.{index}.{part}": shape for part, shape in layer.items()}
    shapes = {"token_embd.weight": (n_embd, n_vocab), "output.weight": (n_embd, n_vocab)}
    return (
        shapes
        | {f"{part}.weight": shape for part, shape in parts.items()}
        | {f"{part}.bias": shape[-1:] for part, shape in parts.items()}
    )


def _impossible(header: Header, key: str) -> ModelFileError:
    if key in header.metadata:
        text = _("{path} is damaged: {key} cannot be {value}.").format(
            path=header.path, key=key, value=reprlib.repr(header.metadata[key])
        )
    else:
        text = _("{path} is damaged: {key} is missing, or not what llama.cpp expects.").format(
            path=header.path, key=key
        )
    return ModelFileError(text, _remedy())


def _remedy() -> str:
    return _("Copy or download it again, or convert the checkpoint again (make convert FORCE=1).")
