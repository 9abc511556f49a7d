"""`python -m convert.lora`: llama.cpp itself takes the file, and computes with it what transformers computes."""

import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from llama_cpp import Llama
from numpy.typing import NDArray

from convert.demo.corpus import ADAPTER
from tests.support import llama
from tests.support.adapters import adapted_by_peft, random_adapter
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import ROOT, converted
from weblab_local.llama import log as llama_log
from weblab_local.models.store import models_dir

DENSE = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
IDS = [17, 5, 230, 99, 42, 42, 7, 301, 288, 64, 12, 150, 3, 275, 81, 199, 20, 8, 33, 111]

KINDS: dict[str, dict[str, Any]] = {
    "queries, keys and values": {},
    "all matrices": {"target_modules": [*DENSE, "lm_head"]},
    "the embedding": {"target_modules": ["embed_in"]},
    "rank and alpha by pattern": {
        "target_modules": DENSE,
        "rank_pattern": {"dense": 2},
        "alpha_pattern": {"dense_4h_to_h": 32},
    },
    "rank-stabilized": {"target_modules": DENSE, "use_rslora": True, "r": 16},
    "a rank of 1": {"r": 1, "target_modules": DENSE},
    "an alpha of 0": {"lora_alpha": 0, "alpha_pattern": {"query_key_value": 8}, "target_modules": DENSE},
}


def convert_lora(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convert.lora", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")


def made(adapter: Path, base: Path, output: Path) -> Path:
    done = convert_lora(adapter, "--base", base, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    return output


def logits(model: Path, adapter: Path, scale: float = 1.0) -> NDArray[np.float32]:
    """llama.cpp's logits after each of IDS."""
    llama_log.route()
    opened = Llama(
        str(model), n_ctx=64, n_threads=1, logits_all=True, verbose=False, lora_path=str(adapter), lora_scale=scale
    )
    opened.eval(IDS)
    found = np.array(opened.scores[: len(IDS)], dtype=np.float32)
    opened.close()
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("base") / "base", dtype="float32")


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(checkpoint, tmp_path_factory.mktemp("model"), "F32")[0]


@torch.inference_mode()
def expected_logits(checkpoint: Path, adapter: Path) -> NDArray[np.float32]:
    found: NDArray[np.float32] = adapted_by_peft(checkpoint, adapter)(torch.tensor([IDS])).logits[0].numpy()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_transformers_does(checkpoint: Path, model: Path, tmp_path: Path, kind: str) -> None:
    adapter = random_adapter(checkpoint, tmp_path / "mine", exact=False, **KINDS[kind])
    path = made(adapter, checkpoint, tmp_path / "mine.lora.gguf")
    expected, base = expected_logits(checkpoint, adapter), llama.logits(model, IDS)
    found = logits(model, path)
    spread = expected.std()
    assert np.sqrt(((found - expected) ** 2).mean()) / spread < 0.002
    assert np.sqrt(((base - expected) ** 2).mean()) / spread > 0.02
    np.testing.assert_array_equal(logits(model, path, 0.0), base)


def fields(path: Path) -> Mapping[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def test_the_demos_adapter(demo_checkpoint: Path, tmp_path: Path) -> None:
    path = made(ADAPTER, demo_checkpoint, tmp_path / "demo.lora.gguf")
    found = fields(path)
    assert {key: found[key] for key in found if key.startswith(("general.", "adapter."))} == {
        "general.architecture": "gptneox",
        "general.type": "adapter",
        "general.name": "weblab-demo-adapter",
        "general.description": (
            "weblab-demo-adapter, a LoRA adapter of weblab-demo-instruction-sft, converted to GGUF by weblab-local."
        ),
        "general.license": "mit",
        "general.license.link": "https://opensource.org/license/mit",
        "general.base_model.count": 1,
        "general.base_model.0.name": "weblab-demo-instruction-sft",
        "general.file_type": 0,
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }


def test_it_goes_beside_the_models_and_replaces_nothing_unasked(demo_checkpoint: Path) -> None:
    done = convert_lora(ADAPTER, "--base", demo_checkpoint)
    path = models_dir() / "weblab-demo-adapter.lora.gguf"
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    before = path.read_bytes()
    again = convert_lora(ADAPTER, "--base", demo_checkpoint)
    assert (again.returncode, again.stdout) == (1, "")
    assert f"{path} exists already." in again.stderr
    assert convert_lora(ADAPTER, "--base", demo_checkpoint, "--force").returncode == 0
    assert path.read_bytes() == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "whole": ({"modules_to_save": ["final_layer_norm"]}, "changes gpt_neox.final_layer_norm.bias"),
    "biases": ({"lora_bias": True}, "changes gpt_neox.layers.0.attention.query_key_value.bias"),
    "DoRA": ({"use_dora": True}, "DoRA (use_dora)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_form_cannot_hold(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    options, message = REFUSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = random_adapter(checkpoint, tmp_path / "mine", **options)
    done = convert_lora(adapter, "--base", checkpoint, "--output", tmp_path / "x.gguf")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_an_adapter_of_another_base(demo_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    adapter = random_adapter(checkpoint, tmp_path / "mine")
    done = convert_lora(adapter, "--base", demo_checkpoint, "--output", tmp_path / "x.gguf")
    assert done.returncode == 1
    assert "the weights lack gpt_neox.layers.2.attention.query_key_value" in done.stderr
    assert f"It was made for another model: {checkpoint}" in done.stderr
