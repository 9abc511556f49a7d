"""Write a GPT-NeoX checkpoint of random weights, laid out as `main` of matsuo-lab/weblab-10b-instruction-sft.

    python tests/benchmarks/synthetic.py OUTPUT_DIR [--scale 1.0 | --layers N] [--seed 0] [--shards 3]

Scale 1 is the real shape: 36 layers, hidden 4864, 10.7e9 weights, 21.6 GB in float16 with the buffers. Scale s keeps
every tensor's shape and takes round(36 * s) layers, at least one; the two embeddings (0.98 GB) are always there.
One tensor is in memory at a time. The weights say nothing: this is for measuring speed, memory and disk.
"""

import argparse
import io
import itertools
import json
import math
import os
import pickle
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LAYERS = 36
CONTEXT = 2048
ROTARY_PCT = 0.25
ROTARY_BASE = 10000
WEIGHT_STD = 0.02
SPACE_RUNS = range(24, 1, -1)
TOKENIZER_SIZE = 50277

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
STORAGES: dict[torch.dtype, type] = {torch.float16: torch.HalfStorage, torch.bfloat16: torch.BFloat16Storage}
STORAGES |= {torch.float32: torch.FloatStorage, torch.bool: torch.BoolStorage}

Fill = Literal["matrix", "gain", "bias", "causal_mask", "masked_bias", "inv_freq"]


@dataclass(frozen=True)
class Spec:
    """One entry of the checkpoint: its name, shape and element type, and how its values are made."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Fill

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def specs(*, layers: int, hidden: int, heads: int, intermediate: int, vocab: int, dtype: torch.dtype) -> Iterator[Spec]:
    """Yield the entries of GPTNeoXForCausalLM's state dict in its order, with the buffers old transformers stored."""
    yield Spec("gpt_neox.embed_in.weight", (vocab, hidden), dtype, "matrix")
    rotary = int(hidden // heads * ROTARY_PCT)
    linears = {"attention.query_key_value": (3 * hidden, hidden), "attention.dense": (hidden, hidden)}
    linears |= {"mlp.dense_h_to_4h": (intermediate, hidden), "mlp.dense_4h_to_h": (hidden, intermediate)}
    for layer in range(layers):
        prefix = f"gpt_neox.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Spec(f"{prefix}.{norm}.weight", (hidden,), dtype, "gain")
            yield Spec(f"{prefix}.{norm}.bias", (hidden,), dtype, "bias")
        yield Spec(f"{prefix}.attention.bias", (1, 1, CONTEXT, CONTEXT), torch.bool, "causal_mask")
        yield Spec(f"{prefix}.attention.masked_bias", (), torch.float32, "masked_bias")
        yield Spec(f"{prefix}.attention.rotary_emb.inv_freq", (rotary // 2,), torch.float32, "inv_freq")
        for name, (rows, columns) in linears.items():
            yield Spec(f"{prefix}.{name}.weight", (rows, columns), dtype, "matrix")
            yield Spec(f"{prefix}.{name}.bias", (rows,), dtype, "bias")
    yield Spec("gpt_neox.final_layer_norm.weight", (hidden,), dtype, "gain")
    yield Spec("gpt_neox.final_layer_norm.bias", (hidden,), dtype, "bias")
    yield Spec("embed_out.weight", (vocab, hidden), dtype, "matrix")


def random_matrix(rng: np.random.Generator, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, columns) of about N(0, 0.02^2).

    Drawing 10.7e9 normals would take minutes. A matrix draws two million at most and lets every row start at a random
    place among them, with its own sign and scale: nothing repeats within a row.
    """
    starting = min(rows * columns, 2**21)
    bank = torch.from_numpy(rng.standard_normal(starting + columns, dtype=np.float32)).mul_(WEIGHT_STD)
    starts = rng.integers(0, starting + 1, rows).tolist()
    scales = (rng.uniform(0.8, 1.2, rows) * rng.choice((-1, 1), rows)).tolist()
    matrix = torch.empty(rows, columns, dtype=dtype)
    # Row by row: so little at a time stays in the cache and on one core, whatever else runs on the others.
    for row, start, scale in zip(matrix, starts, scales, strict=True):
        torch.mul(bank[start : start + columns], scale, out=row)
    return matrix


def values(spec: Spec, seed: int, index: int) -> torch.Tensor:
    """Return the contiguous tensor of an entry; `seed` and the entry's `index` in the checkpoint fix its values."""
    rng = np.random.default_rng((seed, index))
    match spec.fill:
        case "matrix":
            rows, columns = spec.shape
            return random_matrix(rng, rows, columns, spec.dtype)
        case "gain" | "bias":
            noise = torch.from_numpy(rng.standard_normal(spec.shape, dtype=np.float32)) * WEIGHT_STD
            return (noise + 1 if spec.fill == "gain" else noise).to(spec.dtype)
        case "causal_mask":
            return torch.ones(spec.shape, dtype=torch.bool).tril_()
        case "masked_bias":
            return torch.tensor(-1e9)
        case "inv_freq":
            return 1.0 / ROTARY_BASE ** (torch.arange(spec.shape[0], dtype=torch.float32) / spec.shape[0])


@dataclass(frozen=True)
class _Storage:
    """Stands in a shard's pickle for the storage of one tensor: the record `data/<key>` of the archive."""

    spec: Spec
    key: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.storage.spec.shape
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    """Writes the pickle that torch.save writes, without needing the tensors."""

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        return "storage", STORAGES[obj.spec.dtype], str(obj.key), "cpu", math.prod(obj.spec.shape)


def write_shard(path: Path, entries: list[tuple[int, Spec]], seed: int) -> None:
    """Write (index, spec) entries as torch.save would, but one tensor in memory at a time; all of `path` or nothing."""
    tensors = {spec.name: _Tensor(_Storage(spec, key)) for key, (_, spec) in enumerate(entries)}
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(tensors)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file, torch.serialization._open_zipfile_writer(file) as writer:
            writer.write_record("data.pkl", pickled.getvalue(), len(pickled.getvalue()))
            for key, (index, spec) in enumerate(entries):
                storage: Any = values(spec, seed, index).untyped_storage()
                writer.write_record(f"data/{key}", storage, spec.nbytes)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def shard_plan(entries: list[Spec], shards: int) -> list[list[tuple[int, Spec]]]:
    """Fill `shards` shards greedily in the given order; the last takes what is left."""
    # The published limit, in proportion: 10 GB of 21.42 GB, in shards of 9.95, 9.99 and 1.48 GB.
    limit = sum(spec.nbytes for spec in entries) / (shards - 0.858)
    plan: list[list[tuple[int, Spec]]] = [[]]
    filled = 0
    for index, spec in enumerate(entries):
        if plan[-1] and filled + spec.nbytes > limit and len(plan) < shards:
            plan.append([])
            filled = 0
        plan[-1].append((index, spec))
        filled += spec.nbytes
    return plan


def build_tokenizer(size: int) -> Tokenizer:
    """Return a tokenizer of `size` ids built like GPT-NeoX-20B's: 2 special, byte-level BPE, 23 runs of spaces.

    The merges are pairs of bytes, then pairs with a third byte that make kana and ideographs. UTF-8's lead bytes come
    first: no pair tears a character that a triple makes whole. Raises ValueError when `size` cannot hold the bytes.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = itertools.count(256)
    symbols = [chr(byte if byte in printable else next(others)) for byte in range(256)]  # GPT-2's table
    special = ["<|endoftext|>", "<|padding|>"]
    room = size - len(special) - len(symbols) - len(SPACE_RUNS)
    if room < 0:
        raise ValueError(f"a vocabulary of {size} is too small: at least {size - room} ids")
    in_text = [*range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF5)]
    triples = itertools.product(range(0xE3, 0xEA), range(0x80, 0xC0), range(0x80, 0xC0))
    merged = itertools.islice(itertools.chain(itertools.product(reversed(in_text), in_text), triples), room)
    merges = [("".join(symbols[byte] for byte in left), symbols[last]) for *left, last in merged]
    tokens = [*special, *sorted(symbols), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(" " * run, normalized=True) for run in SPACE_RUNS])
    return tokenizer


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write the tokenizer's files: the 20B's own from $WEBLAB_TEST_DATA if it is there and fits, else a built one."""
    original = Path(os.environ.get("WEBLAB_TEST_DATA", ""), "20B_tokenizer.json")
    if "WEBLAB_TEST_DATA" in os.environ and original.is_file() and vocab >= TOKENIZER_SIZE:
        shutil.copyfile(original, folder / "tokenizer.json")
    else:
        build_tokenizer(min(vocab, TOKENIZER_SIZE)).save(str(folder / "tokenizer.json"))
    limits = {"clean_up_tokenization_spaces": True, "model_max_length": 1000000000000000019884624838656}
    _write_json(folder / "tokenizer_config.json", limits | {"tokenizer_class": "PreTrainedTokenizerFast"})
    _write_json(folder / "special_tokens_map.json", {})


def write_checkpoint(
    folder: Path,
    *,
    layers: int,
    hidden: int = 4864,
    heads: int = 38,
    intermediate: int = 19456,
    vocab: int = TOKENIZER_SIZE,
    seed: int = 0,
    shards: int = 3,
    dtype: str = "float16",
) -> int:
    """Write a checkpoint into `folder`, a line per shard to stderr, and return the bytes written.

    Raises FileExistsError when `folder` is not empty, ValueError for a shape GPT-NeoX cannot have, OSError when the
    disk has no room; all of these before a shard is written.
    """
    if min(layers, shards, heads) < 1 or seed < 0 or hidden % heads:
        raise ValueError("layers, shards and heads start at 1, the seed at 0, and hidden is a multiple of heads")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder, or empty that one")
    shape = {"layers": layers, "hidden": hidden, "heads": heads, "intermediate": intermediate, "vocab": vocab}
    entries = list(specs(**shape, dtype=DTYPES[dtype]))
    total = sum(spec.nbytes for spec in entries)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = total + len(entries) * 1024 + 2**23, shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"{folder} needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free")

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, vocab)
    plan = shard_plan(entries, shards)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(plan, 1):
        path = folder / f"pytorch_model-{number:05}-of-{len(plan):05}.bin"
        write_shard(path, shard, seed)
        weight_map |= {spec.name: path.name for _, spec in shard}
        print(f"{number}/{len(plan)} {path.name}: {path.stat().st_size / 1e9:.2f} GB", file=sys.stderr)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "pytorch_model.bin.index.json", index)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    _write_json(folder / "config.json", config(**shape, dtype=dtype))
    return sum(path.stat().st_size for path in folder.iterdir())


def config(*, layers: int, hidden: int, heads: int, intermediate: int, vocab: int, dtype: str) -> dict[str, object]:
    """Return config.json as transformers 4 wrote it: `rotary_pct` and `rotary_emb_base`, no `rope_parameters`."""
    kind = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "torch_dtype": dtype}
    size = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    size |= {"intermediate_size": intermediate, "vocab_size": vocab, "max_position_embeddings": CONTEXT}
    rotary = {"rotary_pct": ROTARY_PCT, "rotary_emb_base": ROTARY_BASE}
    block = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": True}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    return {**kind, **size, **rotary, **block, **tokens}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="a new or empty folder")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--scale", type=float, default=1.0, help="round(36 * scale) layers, at least 1 (default 1.0)")
    size.add_argument("--layers", type=int, help="that many layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    args = parser.parse_args()
    layers = max(1, round(LAYERS * args.scale)) if args.layers is None else args.layers
    start = time.perf_counter()
    try:
        written = write_checkpoint(args.output_dir, layers=layers, seed=args.seed, shards=args.shards, dtype=args.dtype)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    seconds = time.perf_counter() - start
    print(f"{written / 1e9:.2f} GB in {seconds:.1f} s: {written / seconds / 1e6:.0f} MB/s", file=sys.stderr)


if __name__ == "__main__":
    main()
