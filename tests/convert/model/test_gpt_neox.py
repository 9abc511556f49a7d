"""The converted model computes what transformers computes, for everything that differs between GPT-NeoX models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXForCausalLM

from convert.run import Request, run
from tests.support.checkpoints import random_checkpoint
from tests.support.llama import logits

IDS = [17, 5, 230, 99, 42, 42, 7, 301, 288, 64, 12, 150, 3, 275, 81, 199, 20, 8, 33, 111]

VARIANTS: dict[str, dict[str, Any]] = {
    "as weblab-10b": {},
    "sequential residual": {"use_parallel_residual": False},
    "all dimensions rotated": {"rotary_pct": 1.0},
    "half the dimensions rotated": {"rotary_pct": 0.5},
    "another rotary base": {"rotary_base": 500.0},
    "linear rope scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "config.json of transformers 5": {"config_form": "new", "rotary_pct": 0.5, "rotary_base": 500.0},
    "linear rope scaling, transformers 5": {
        "config_form": "new",
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "no biases in attention": {"attention_bias": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "padded vocabulary": {"vocab_size": 384},
    "tanh GELU": {"hidden_act": "gelu_new"},
    "GPT-NeoX-20B's name for it": {"hidden_act": "gelu_fast"},
    "another epsilon": {"layer_norm_eps": 0.5},
    "8 heads": {"heads": 8, "rotary_pct": 0.5},
    "bf16 .bin shards": {"dtype": "bfloat16", "form": "bin", "shards": 3},
}


@torch.inference_mode()
def reference_logits(checkpoint: Path) -> np.ndarray[Any, Any]:
    model = GPTNeoXForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return np.asarray(model(torch.tensor([IDS])).logits[0].numpy())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", **{"dtype": "float32", **VARIANTS[variant]})
    (gguf,) = run(Request(str(checkpoint), None, ["F32"], tmp_path / "out"))
    expected = reference_logits(checkpoint)
    found = logits(gguf, IDS)
    error = np.sqrt(((found - expected) ** 2).mean()) / expected.std()
    # What llama.cpp leaves: the tanh form of GELU from an fp16 table, and keys and values in fp16.
    assert error < 0.002
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_wrong_rotary_fraction_would_be_seen(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", dtype="float32")
    expected = reference_logits(checkpoint)
    config = (checkpoint / "config.json").read_text().replace('"rotary_pct": 0.25', '"rotary_pct": 0.5')
    (checkpoint / "config.json").write_text(config)
    (gguf,) = run(Request(str(checkpoint), None, ["F32"], tmp_path / "out"))
    error = np.sqrt(((logits(gguf, IDS) - expected) ** 2).mean()) / expected.std()
    assert error > 0.05
