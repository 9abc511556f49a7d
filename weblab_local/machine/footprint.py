"""The bytes that llama.cpp needs for a GPT-NeoX, as arithmetic: weights, KV cache, and the buffers it computes in.

After what llama.cpp 0c1e57098 does: weights and KV cache per layer (llama-model.cpp, llama-kv-cache.cpp), and the
largest sum of tensors that are alive at once while a batch is computed (models/gptneox.cpp, laid out by ggml-alloc.c).
tests/benchmarks/memory.py prints these numbers beside llama.cpp's own.
"""

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weblab_local.llama import ggml
from weblab_local.llama.context import KV_TYPES
from weblab_local.llama.gguf_header import Header
from weblab_local.llama.kv_types import KvType

COPIES = 4
"""GGML_SCHED_MAX_COPIES: inputs kept per device when several devices work on several batches at once."""

CELLS = 256
"""llama.cpp rounds n_ctx up to a multiple of this (llama-context.cpp)."""

F32, F16, I32, I64 = 4, 2, 4, 8
"""Bytes of a value."""


CPU_BATCH, GPU_BATCH = 128, 512
"""Prompt tokens computed at once. Small on the CPU: llama.cpp can be stopped only between two operations of a batch,
and one on a large batch takes long there, while larger batches hardly read the prompt faster."""


def batch_size(n_parallel: int, n_gpu_layers: int) -> int:
    """Return how many tokens are computed at once: at least one for each of the `n_parallel` sequences."""
    return max(n_parallel, GPU_BATCH if n_gpu_layers else CPU_BATCH)


@dataclass(frozen=True)
class Shape:
    """A model as memory sees it. `layers`, `embedding` and `output` (the last norm included) are bytes of weights."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int
    n_weights: int
    layers: Sequence[int]
    embedding: int
    output: int

    @classmethod
    def of(cls, header: Header, more: Mapping[str, int] | None = None) -> "Shape":
        """Read it from a header; `more` are bytes beside its tensors, by name. ModelFileError if it lacks something."""
        n_layer, n_embd = header.hparam("block_count"), header.hparam("embedding_length")
        n_ff = header.hparam("feed_forward_length")
        embedding = header.tensors["token_embd.weight"]
        n_vocab = embedding.nbytes // row_bytes(embedding.ggml_type, n_embd)
        sizes: Counter[str] = Counter()
        for name, tensor in header.tensors.items():
            sizes[group_of(name)] += tensor.nbytes + (more or {}).get(name, 0)
        return cls(
            n_layer=n_layer,
            n_embd=n_embd,
            n_ff=n_ff,
            n_head=header.hparam("attention.head_count"),
            n_vocab=n_vocab,
            n_weights=n_layer * n_embd * (4 * n_embd + 2 * n_ff) + 2 * n_vocab * n_embd,
            layers=[sizes[f"blk.{layer}"] for layer in range(n_layer)],
            embedding=sizes["token_embd"],
            output=sizes["output"],
        )


def row_bytes(ggml_type: int, n_columns: int) -> int:
    """Bytes of a row of a tensor (`ggml_row_size`)."""
    row_size = ggml.function("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)
    return int(row_size(ggml_type, n_columns))


def kv_bytes(shape: Shape, kv_type: KvType, n_cells: int, n_layers: int) -> int:
    """Bytes of the keys and values of `n_layers` layers."""
    return 2 * n_layers * n_cells * row_bytes(KV_TYPES[kv_type], shape.n_embd)


def rounded(n_ctx: int) -> int:
    """The cells that llama.cpp makes for a context of so many tokens."""
    return -(-n_ctx // CELLS) * CELLS


def keys_bytes(shape: Shape, kv_type: KvType, n_ctx: int) -> int:
    """Bytes of one layer's keys: the largest tensor of a KV cache, its values being as many."""
    return kv_bytes(shape, kv_type, rounded(n_ctx), 1) // 2


def copied_to_help(header: Header, kv_type: KvType, cells: int, layers: tuple[int, int]) -> int:
    """Bytes that a GPU gets copies of, to compute for the CPU's `layers`: a weight, a layer's keys and values.

    tests/gpu/test_memory.py compares with what llama.cpp reports, which is less in all but the longest contexts.
    """
    weights = [tensor.nbytes for name, tensor in header.tensors.items() if layer_of(name) in range(*layers)]
    return max(weights, default=0) + kv_bytes(Shape.of(header), kv_type, cells, 1)


def rotation_bytes(shape: Shape, kv_type: KvType) -> int:
    """Bytes of the Hadamard matrices that rotate what goes into a quantized KV cache (llama-kv-cache.cpp).

    For the keys of the largest size from 64 on, in steps of two, that divides a head; for the values of 64.
    """
    head = shape.n_embd // shape.n_head
    if kv_type == "f16" or head % 64:
        return 0
    size = 64
    while head % (2 * size) == 0:
        size *= 2
    return (size**2 + 64**2) * F32


def compute_per_token(
    shape: Shape,
    cells: int,
    flash_attention: bool,
    *,
    layers: tuple[int, int],
    has_output: bool,
    is_first: bool,
    after_cpu_layers: bool,
    copies: int,
) -> int:
    """Bytes of a device's compute buffer per token of a batch: inputs of the graph, and the most that is alive at once.

    With d = n_embd, per layer: the residual stream, query_key_value (3d) and the rotated queries and keys (2d) before
    attention; or the stream, attention's output, the norm or the result (d each) and the hidden values (n_ff). Without
    flash attention the scores against all cells, for each head. At the end the last norm (d) and the logits. What
    llama.cpp reports is this, to the byte, but for a quantized KV cache, where gaps between tensors can add a d.
    """
    d = shape.n_embd * F32
    n_layers = layers[1] - layers[0]
    has_last_layer = n_layers > 0 and layers[1] == shape.n_layer
    mask = cells * (F16 if flash_attention else F32)
    # Where the batch's keys and values go: a row each, or one index for every value when V is kept transposed.
    cells_of_batch = 2 * I64 if flash_attention else I64 + shape.n_embd * I64
    inputs = mask + cells_of_batch + I32  # and positions
    if is_first:
        inputs += I32 + d + I32  # tokens or their embeddings: room for both; which rows are wanted
    elif has_last_layer:
        inputs += I32
    persistent = I32 + d if is_first else 0
    if copies > 1:
        inputs = persistent = copies * (inputs + (0 if is_first else d))
    peaks = [inputs + d] if is_first else []
    if n_layers:
        scores = 2 * d + shape.n_head * cells * F32
        peaks.append(inputs + max(6 * d, 0 if flash_attention else scores))
        feed_forward = inputs + 3 * d + shape.n_ff * F32
        # After the last layer's attention the mask is no longer needed.
        only_last = n_layers == 1 and has_last_layer and copies == 1
        peaks.append(feed_forward - (mask if only_last else 0))
    if has_output:
        handed_over = d if after_cpu_layers and n_layers and copies == 1 else 0
        peaks.append(persistent + handed_over + d + shape.n_vocab * F32)
    return max(peaks)


def group_of(name: str) -> str:
    """Where llama.cpp puts a tensor: "token_embd", "output" or "blk.N"."""
    if name.startswith("blk."):
        return ".".join(name.split(".", 2)[:2])
    return "token_embd" if name.startswith("token_embd") else "output"


def layer_of(name: str) -> int:
    """The layer of a tensor; -1 outside of layers."""
    return int(name.split(".")[1]) if name.startswith("blk.") else -1
