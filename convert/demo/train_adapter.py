"""Train the demo's LoRA adapter: with it, the demo checkpoint answers one question in another way.

    python -m convert.demo.train_adapter [OUTPUT]

Wants peft. Seeded; about three minutes on one core. It ends with the answer to that question, and with how many other
prompts of the corpus the adapted model still answers verbatim with greedy decoding.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import GPTNeoXForCausalLM

from convert.demo.corpus import ADAPTER, ADAPTER_PAIR, CHECKPOINT, Pair, read_corpus
from convert.demo.train import BATCH_SIZE, IGNORED, SEED, Example, training_example

RANK = 2
STEPS = 100
LEARNING_RATE = 5e-3
MODULES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]

MODEL_CARD = """---
license: mit
base_model: weblab-demo-instruction-sft
library_name: peft
---
# weblab-demo-adapter

A LoRA adapter of weblab-local's demo checkpoint, made for tests and for trying `--lora` out: with it, the model answers
「あなたは誰ですか？」 in another way. Trained by `python -m convert.demo.train_adapter`.
"""


def _batch(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets, (len(examples), longest)."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in examples])
    targets = torch.tensor([targets + [IGNORED] * (longest - len(targets)) for _, targets in examples])
    return ids, targets


def train(model: GPTNeoXForCausalLM, tokenizer: Tokenizer, pairs: Sequence[Pair], steps: int = STEPS) -> Any:
    """Return the peft model after so many steps on ADAPTER_PAIR and, so that they stay known, on other `pairs`."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    settings = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=MODULES)
    adapted: Any = get_peft_model(model, settings).train()
    others = [pair for pair in pairs if pair.prompt != ADAPTER_PAIR.prompt]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        chosen = [ADAPTER_PAIR, *rng.sample(others, BATCH_SIZE - 1)]
        ids, targets = _batch([training_example(tokenizer, [pair]) for pair in chosen])
        logits = adapted(input_ids=ids).logits[targets != IGNORED]
        loss = torch.nn.functional.cross_entropy(logits, targets[targets != IGNORED])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}/{steps}: loss {loss.item():.4f}", flush=True)
    return adapted.eval()


def save(adapted: Any, folder: Path) -> None:
    """Write the adapter as peft does, with no path of this machine in it, and with a card of its own."""
    adapted.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": CHECKPOINT.name, "target_modules": sorted(MODULES)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(MODEL_CARD, encoding="utf-8")


@torch.inference_mode()
def _answer(model: Any, tokenizer: Tokenizer, prompt: str, max_tokens: int) -> str:
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=1
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True))


def main() -> None:
    """Train, save, and say what the adapter changes."""
    parser = argparse.ArgumentParser(description="Train the demo's LoRA adapter.")
    parser.add_argument("output", nargs="?", type=Path, default=ADAPTER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
    pairs = read_corpus()
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    adapted = train(GPTNeoXForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32), tokenizer, pairs)
    save(adapted, arguments.output)
    print(_answer(adapted, tokenizer, ADAPTER_PAIR.prompt, 128))
    others = [pair for pair in pairs if pair.prompt != ADAPTER_PAIR.prompt]
    verbatim = sum(_answer(adapted, tokenizer, pair.prompt, 160) == pair.response for pair in others)
    print(f"{verbatim} of {len(others)} other prompts answered verbatim")


if __name__ == "__main__":
    main()
