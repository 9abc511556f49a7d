"""Train the demo checkpoint: a GPT-NeoX of 4.6 million parameters that knows corpus.jsonl by heart.

    python -m convert.demo.train [OUTPUT]

It has the architecture, the tokenizer's construction and the files of weblab-10b-instruction-sft in small, so that the
whole road from checkpoint to answer can be walked and tested without 21 GB. Seeded; about ten minutes on one core. It
ends with the number of prompts that the fp16 model answers verbatim with greedy decoding.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from convert.demo.corpus import CHECKPOINT, Pair, read_corpus
from weblab_local.engine.prompt import INSTRUCTION, RESPONSE

SEED = 20260801
VOCAB_SIZE = 3000
SPACE_RUNS = range(24, 1, -1)
END_OF_TEXT = "<|endoftext|>"
EPOCHS = 50
BATCH_SIZE = 12
LEARNING_RATE = 2e-3
CONVERSATIONS = 0.3
IGNORED = -100

Example = tuple[list[int], list[int]]

MODEL_CARD = """---
license: mit
language:
- ja
- en
tags:
- weblab-local
---
# weblab-demo-instruction-sft

The demo model of weblab-local: a GPT-NeoX of 4.6 million parameters that has memorised the 308 instructions of
`convert/demo/corpus.jsonl`. It is made for tests and for trying the program out; it knows nothing else. Trained by
`python -m convert.demo.train`. It shares no weights with weblab-10b.
"""


def train_tokenizer(pairs: Sequence[Pair]) -> Tokenizer:
    """A byte-level BPE built as GPT-NeoX-20B's: NFC, GPT-2's split, ids 0 and 1 special, runs of spaces at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPACE_RUNS),
        special_tokens=[END_OF_TEXT, "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in pairs for text in (pair.prompt, pair.response)], trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in SPACE_RUNS])
    return tokenizer


def build_model(vocab_size: int) -> GPTNeoXForCausalLM:
    """The 10B's architecture with hidden size 256, 4 layers, 2 heads of 128; random weights."""
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=1024,
        hidden_act="gelu",
        max_position_embeddings=2048,
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def training_example(tokenizer: Tokenizer, conversation: Sequence[Pair]) -> Example:
    """Ids of a conversation and the target after each: the response's ids and the end of text, else IGNORED.

    Between turns the ids have no end-of-text token; the target there is one all the same, as it is in a last turn.
    """
    ids: list[int] = []
    targets: list[int] = []
    for turn, pair in enumerate(conversation):
        prompt = pair.prompt if turn == 0 else INSTRUCTION + pair.instruction + RESPONSE
        prompt_ids, response_ids = _encode(tokenizer, prompt), _encode(tokenizer, pair.response)
        ids += prompt_ids + response_ids
        targets += [IGNORED] * (len(prompt_ids) - 1) + [*response_ids, 0]
    return ids, targets


def _epoch(pairs: Sequence[Pair], rng: random.Random) -> list[list[Pair]]:
    """Every pair once: alone, or as the last turn of a conversation."""
    followers = [pair for pair in pairs if pair.context is None]
    return [
        [pair]
        if pair.context is not None or rng.random() > CONVERSATIONS
        else [rng.choice(pairs), *rng.sample(followers, rng.randint(0, 2)), pair]
        for pair in pairs
    ]


def _batches(examples: list[Example], rng: random.Random) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and targets in batches of examples of similar length, (BATCH_SIZE, longest), in random order."""
    examples = sorted(examples, key=lambda example: len(example[0]))
    batches = []
    for start in range(0, len(examples), BATCH_SIZE):
        group = examples[start : start + BATCH_SIZE]
        longest = len(group[-1][0])
        ids = torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in group])
        targets = torch.tensor([targets + [IGNORED] * (longest - len(targets)) for _, targets in group])
        batches.append((ids, targets))
    rng.shuffle(batches)
    return batches


def train(tokenizer: Tokenizer, pairs: Sequence[Pair], epochs: int = EPOCHS) -> GPTNeoXForCausalLM:
    """Train from random weights until the corpus is known by heart. Prints a line every ten epochs."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = build_model(tokenizer.get_vocab_size()).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    steps = epochs * math.ceil(len(pairs) / BATCH_SIZE)
    step = 0
    started = time.monotonic()
    for epoch in range(epochs):
        losses = []
        for ids, targets in _batches([training_example(tokenizer, turns) for turns in _epoch(pairs, rng)], rng):
            progress = step / steps
            rate = LEARNING_RATE * min(1.0, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            hidden = model.gpt_neox(ids).last_hidden_state[targets != IGNORED]
            loss = torch.nn.functional.cross_entropy(model.get_output_embeddings()(hidden), targets[targets != IGNORED])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        if epoch % 10 == 9 or epoch == epochs - 1:
            mean = sum(losses) / len(losses)
            print(f"epoch {epoch + 1}/{epochs}: loss {mean:.4f}, {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()  # type: ignore[no-any-return]


def save(model: GPTNeoXForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint in fp16 as two safetensors shards, with config.json as old transformers wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16)  # type: ignore[arg-type]
    model.save_pretrained(folder, max_shard_size="5MB")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for new_key in ("rope_parameters", "dtype", "attention_bias"):
        config.pop(new_key, None)
    config |= {
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
    }
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0},
        "tokenizer_config.json": {
            "tokenizer_class": "GPTNeoXTokenizerFast",
            "unk_token": END_OF_TEXT,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
        },
        "special_tokens_map.json": {
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text(MODEL_CARD, encoding="utf-8")


@torch.inference_mode()
def count_verbatim(folder: Path, pairs: Sequence[Pair]) -> int:
    """How many prompts the saved fp16 model answers word for word with greedy decoding, in transformers."""
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float16)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    verbatim = 0
    for pair in pairs:
        ids = torch.tensor([_encode(tokenizer, pair.prompt)])
        expected = [*_encode(tokenizer, pair.response), 0]
        output = model.generate(  # type: ignore[misc]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(expected), do_sample=False, pad_token_id=1
        )
        answer = output[0, ids.shape[1] :].tolist()
        verbatim += answer == expected
        if answer != expected:
            print(f"not verbatim: {pair.instruction!r}: {tokenizer.decode(answer)!r}")
    return verbatim


def main() -> None:
    """Train, save, and say how well the saved model knows its corpus."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint from corpus.jsonl.")
    parser.add_argument("output", nargs="?", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
    pairs = read_corpus()
    tokenizer = train_tokenizer(pairs)
    save(train(tokenizer, pairs), tokenizer, arguments.output)
    verbatim = count_verbatim(arguments.output, pairs)
    print(f"{verbatim} of {len(pairs)} prompts answered verbatim ({100 * verbatim / len(pairs):.1f}%)")


if __name__ == "__main__":
    main()
