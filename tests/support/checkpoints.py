"""Small random GPT-NeoX checkpoints in every form the converter reads, made with transformers and torch."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
WORDS = [
    "日本の首都は東京です。",
    "大規模言語モデル",
    "def f(x):\n    return x",
    "Hello, world! Hello again.",
    "１２３ ＡＢＣ",
]


def tokenizer(vocab_size: int = 330) -> Tokenizer:
    """A byte-level BPE built as GPT-NeoX-20B's: NFC, ids 0 and 1 special, runs of 24 down to 2 spaces at the end."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 23,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    made.train_from_iterator(WORDS, trainer)
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return made


def random_checkpoint(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 256,
    heads: int = 2,
    intermediate: int = 512,
    vocab_size: int = 330,
    rotary_pct: float = 0.25,
    rotary_base: float = 10000.0,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    form: Literal["safetensors", "bin"] = "safetensors",
    shards: int = 1,
    config_form: Literal["old", "new"] = "old",
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a checkpoint with random weights to `folder`; `config` are further fields of GPTNeoXConfig.

    In the form "bin" the shards also hold the buffers of old checkpoints: causal masks and rotary frequencies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "partial_rotary_factor": rotary_pct, "rope_theta": rotary_base}
    rope |= config.pop("rope_scaling", {})
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            rope_parameters=rope,
            eos_token_id=0,
            **config,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # std 0.02 leaves logits and LayerNorms too flat to tell a right answer from a wrong one
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    model.to(DTYPES[dtype])  # type: ignore[arg-type]
    model.save_pretrained(folder, max_shard_size=_shard_size(model, shards))
    if form == "bin":
        _rewrite_as_bin(folder, layers)
    if config_form == "old":
        written = json.loads((folder / "config.json").read_text())
        del written["rope_parameters"]
        written |= {"rotary_pct": rotary_pct, "rotary_emb_base": rotary_base, "torch_dtype": dtype}
        if rope["rope_type"] != "default":
            written["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
        (folder / "config.json").write_text(json.dumps(written))
    tokenizer(min(vocab_size, 330)).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTNeoXTokenizerFast"}')
    return folder


def _shard_size(model: GPTNeoXForCausalLM, shards: int) -> int:
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return int(n_bytes * 1.1) if shards == 1 else -(-n_bytes // shards)


def _rewrite_as_bin(folder: Path, layers: int) -> None:
    from safetensors.torch import load_file

    buffers: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        prefix = f"gpt_neox.layers.{layer}.attention."
        buffers[prefix + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        buffers[prefix + "masked_bias"] = torch.tensor(-1e9)
        buffers[prefix + "rotary_emb.inv_freq"] = torch.ones(16)
    shards = sorted(folder.glob("model*.safetensors"))
    index: dict[str, str] = {}
    for number, path in enumerate(shards):
        state = load_file(path) | (buffers if number == 0 else {})
        name = path.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(state, folder / name)
        index |= dict.fromkeys(state, name)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    if len(shards) > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
