"""Every value of a GGUF's header changed to what it should not be: which files end the process that loads them.

    python -m tests.benchmarks.damaged_gguf [FILE]

Each case is loaded, and two tokens generated. Prints those that neither work nor are refused, and exits 1 if there
are any. Takes some minutes; tests/llama/test_damaged_gguf.py tries the cases that once ended the process.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.damaged_gguf import INFINITY, NAN, Changed, Value, outcomes, values
from weblab_local.models.store import demo_model

_NUMBERS = (0, 1, 2, 3, 7, 31, 33, 64, 127, 255, 512, 513, 3001, 10**6 + 3, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-38, 1e38, -1e38, NAN, INFINITY, -INFINITY)
_WORDS = ("", "x", "gpt2", "llama", "bert", "t5", "rwkv", "none", "no_vocab", "plamo2", "gemma4", "hybriddna", "phi3")
_WORDS_OF_BYTES = (b"\xff\xfe", b"a\x00b", b"x" * 100_000)
_OTHER_TYPES = (
    Value("u8", 1),
    Value("u16", 1),
    Value("u32", 1),
    Value("i32", -1),
    Value("u64", 2**64 - 1),
    Value("i64", -1),
    Value("f32", NAN),
    Value("f64", INFINITY),
    Value("bool", 2),
    Value("str", ""),
    Value("str", "7"),
    Value("[u32]", []),
    Value("[u32]", [1]),
    Value("[u32]", [1] * 4),
    Value("[i32]", [-1]),
    Value("[f32]", [NAN]),
    Value("[bool]", [1] * 4),
    Value("[str]", []),
    Value("[str]", ["x"]),
)
_ABSENT = {
    "u32": (
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.key_length_swa",
        "attention.sliding_window",
        "rope.dimension_count_swa",
        "rope.scaling.original_context_length",
        "pooling_type",
        "classifier.pooling_type",
        "nextn_predict_layers",
        "expert_count",
        "expert_used_count",
        "expert_group_count",
        "expert_group_used_count",
        "embedding_length_out",
        "leading_dense_block_count",
    ),
    "f32": (
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.alpha",
        "rope.scaling.yarn_log_multiplier",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "logit_scale",
    ),
    "bool": ("attention.causal", "rope.scaling.finetuned"),
    "str": ("rope.scaling.type",),
}
"""What llama.cpp may read of any architecture, and our files do not have."""

_ABSENT_TOKENS = (
    *(f"{name}_token_id" for name in ("eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_pad")),
    "token_type_count",
)
_SPLITS = (
    "afmoe",
    "bailingmoe",
    "bloom",
    "chameleon",
    "chatglm-bpe",
    "codeshell",
    "command-r",
    "dbrx",
    "deepseek-coder",
    "deepseek-llm",
    "deepseek-v3",
    "default",
    "exaone",
    "exaone4",
    "falcon",
    "gemma4",
    "gpt-2",
    "gpt-4o",
    "gpt3-finnish",
    "granite-docling",
    "grok-2",
    "hunyuan",
    "hunyuan-dense",
    "jais",
    "jina-es",
    "jina-v2-zh",
    "joyai-llm",
    "kimi-k2",
    "llama-bpe",
    "llama3",
    "llama4",
    "megrez",
    "minerva-7b",
    "minicpm5",
    "minimax-m2",
    "mpt",
    "olmo",
    "phi-2",
    "pixtral",
    "poro-chat",
    "qwen2",
    "qwen35",
    "refact",
    "sarvam-moe",
    "seed-coder",
    "smaug-bpe",
    "smollm",
    "solar-open",
    "spark2_5",
    "stablelm2",
    "starcoder",
    "superbpe",
    "tekken",
    "trillion",
    "viking",
    "whitespace",
    "youtu",
)


def cases(path: Path) -> Iterator[Changed]:
    """Every key of the file at `path` with other values, other types and gone; and keys that it does not have."""
    present = values(path)
    for key, value in present.items():
        yield Changed(key, None)
        yield from (Changed(key, other) for other in _others(value))
    for kind, names in _ABSENT.items():
        for key in (f"gptneox.{name}" for name in names):
            yield from (Changed(key, other) for other in _others(Value(kind, 0)))
    for name in _ABSENT_TOKENS:
        yield from (Changed(f"tokenizer.ggml.{name}", Value("u32", number)) for number in _NUMBERS)
    yield from (Changed("tokenizer.ggml.pre", Value("str", split)) for split in _SPLITS)
    for kind in ("none", "linear", "yarn", "longrope"):
        yield Changed("gptneox.rope.scaling.type", Value("str", kind))
    yield from (Changed("general.alignment", Value("u32", 2**power)) for power in range(13))
    yield from (Changed("split.count", Value("u16", number)) for number in (0, 1, 2, 65535))
    yield Changed("tokenizer.ggml.scores", Value("[f32]", [NAN] * len(present["tokenizer.ggml.tokens"].value)))
    yield Changed("tokenizer.ggml.suppress_tokens", Value("[i32]", [-1, 0, 2**31 - 1]))


def _others(value: Value) -> Iterator[Value]:
    kind = value.type.strip("[]")
    if kind != value.type:
        yield from _other_arrays(kind, value.value)
    elif kind == "str":
        yield from (Value("str", word) for word in (*_WORDS, *_WORDS_OF_BYTES))
    elif kind == "f32":
        yield from (Value("f32", number) for number in _FLOATS)
    elif kind == "bool":
        yield from (Value("bool", number) for number in (0, 1, 2, 255))
    else:
        near = (value.value - 1, value.value + 1, 2 * value.value, value.value // 2)
        yield from (Value(kind, number) for number in dict.fromkeys((*_NUMBERS, *near)) if number >= 0)
    yield from (other for other in _OTHER_TYPES if other.type != value.type)


def _other_arrays(kind: str, elements: list[object]) -> Iterator[Value]:
    half = len(elements) // 2
    changed: list[list[object]] = [[], elements[:1], elements[:-1], elements[:half], [*elements, *elements[:1]]]
    changed.append([*elements, *("a new one",) * (kind == "str"), *(1,) * (kind == "i32")])
    strange: tuple[object, ...] = (*_WORDS, *_WORDS_OF_BYTES, " ", "  ", "a b c", "[EMPTY_0]")
    if kind != "str":
        strange = (0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1, -(2**31))
    for one in strange:
        changed.append([*elements[:half], one, *elements[half + 1 :]])
        changed.append([one] * len(elements))
    yield from (Value(f"[{kind}]", array) for array in changed)


def main() -> int:
    """Print what is wrong, and how many cases went which way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=demo_model())
    parser.add_argument("--part", default="0/1", help="n/m: the cases n, n + m, n + 2 m, ...")
    arguments = parser.parse_args()
    first, step = map(int, arguments.part.split("/"))
    chosen = list(cases(arguments.file))[first::step]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tried = outcomes(arguments.file, Path(folder), ([case] for case in chosen))
        for case, outcome in zip(chosen, tried, strict=True):
            kind = outcome.split()[0].rstrip(":")
            counts[kind] += 1
            if kind not in ("works", "refused"):
                print(f"{case}\n    {outcome}", flush=True)
    print(", ".join(f"{kind} {n}" for kind, n in counts.items()))
    return int(counts.keys() - {"works", "refused"} != set())


if __name__ == "__main__":
    sys.exit(main())
