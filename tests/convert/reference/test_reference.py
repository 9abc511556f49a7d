"""The fp16 reference computes what transformers computes in float32, a layer at a time, and survives interruptions."""

import gc
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GPTNeoXForCausalLM

from convert.errors import CheckpointError, ConversionError, OutputError
from convert.reference.log_probabilities import log_probabilities
from convert.reference.reference import logits
from convert.source.checkpoint import Checkpoint, open_checkpoint
from tests.convert.model.test_gpt_neox import IDS, VARIANTS
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import files_in

SEQUENCES = [IDS, IDS[:1], [*IDS[::-1], *IDS, *IDS]]

OTHERS: dict[str, dict[str, Any]] = {
    "erf GELU by its other name": {"hidden_act": "gelu_python"},
    "fast tanh GELU": {"hidden_act": "gelu_fast"},
    "torch's tanh GELU": {"hidden_act": "gelu_pytorch_tanh"},
    "sequential residual, no biases, tied": {
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "odd fraction of a small head": {"heads": 8, "rotary_pct": 0.7, "rotary_base": 1e6},
    "fp16": {"dtype": "float16"},
    "fp16 in shards that cut layers": {"dtype": "float16", "shards": 5, "layers": 3},
    "fp32 .bin": {"form": "bin"},
    "fp16 .bin shards": {"dtype": "float16", "form": "bin", "shards": 4},
    "bf16": {"dtype": "bfloat16"},
}


def transformers_model(folder: Path) -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.inference_mode()
def transformers_logits(folder: Path, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
    model = transformers_model(folder)
    return [np.asarray(model(torch.tensor([ids])).logits[0].numpy()) for ids in sequences]


def assert_same_logits(folder: Path, sequences: list[list[int]]) -> None:
    found = list(logits(open_checkpoint(folder), sequences))
    for ours, theirs in zip(found, transformers_logits(folder, sequences), strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = random_checkpoint(tmp_path_factory.mktemp("reference") / "model", layers=4, shards=3)
    return open_checkpoint(folder)


class Interrupter:
    """A progress callback that is a person who presses Ctrl-C when `share` of the work is done."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if done >= self.share * total:
            raise KeyboardInterrupt


class Sums:
    """A resumable observer: for each weight, the sum of its inputs over all tokens."""

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.names: list[str] = []

    def __call__(self, name: str, inputs: torch.Tensor) -> None:
        self.names.append(name)
        self.sums[name] = self.sums.get(name, np.zeros(inputs.shape[1])) + inputs.double().sum(0).numpy()

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        return self.sums

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.sums = dict(state)


class OtherSums(Sums):
    """The same, but another kind of observer."""


def interrupted(checkpoint: Checkpoint, state: Path, observer: Sums | None = None, share: float = 0.6) -> None:
    """Leave the `state` of a run over four layers in which two were finished."""
    with pytest.raises(KeyboardInterrupt):
        list(logits(checkpoint, SEQUENCES, observer=observer, state=state, progress=Interrupter(share)))


def uninterrupted(checkpoint: Checkpoint) -> tuple[list[NDArray[np.float32]], Sums]:
    sums = Sums()
    return list(logits(checkpoint, SEQUENCES, observer=sums)), sums


@pytest.mark.parametrize("variant", VARIANTS | OTHERS)
def test_logits_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    settings = {"dtype": "float32", **(VARIANTS | OTHERS)[variant]}
    assert_same_logits(random_checkpoint(tmp_path / "model", **settings), SEQUENCES)


def test_logits_of_the_demo_are_those_of_transformers(demo_checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    assert_same_logits(demo_checkpoint, [rng.integers(0, 3000, length).tolist() for length in (700, 2048, 40, 500)])


@pytest.mark.parametrize("name", ["weblab-mini", "weblab-mid"])
def test_logits_of_a_trained_model_are_those_of_transformers(test_data: Path, name: str) -> None:
    vocab_size = json.loads((test_data / name / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocab_size, 300).tolist()
    assert_same_logits(test_data / name, [ids[:90], ids])


def test_a_sequence_has_the_same_logits_whatever_comes_with_it(checkpoint: Checkpoint) -> None:
    together, _ = uninterrupted(checkpoint)
    for ids, expected in zip(SEQUENCES, together, strict=True):
        (alone,) = logits(checkpoint, [ids])
        assert np.array_equal(alone, expected)


def test_the_observer_sees_the_inputs_that_each_weight_has_in_transformers(checkpoint: Checkpoint) -> None:
    modules = {
        "attn_qkv": "attention.query_key_value",
        "attn_output": "attention.dense",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    }
    model = transformers_model(checkpoint.folder)
    names = {
        f"gpt_neox.layers.{n}.{theirs}": f"blk.{n}.{ours}.weight" for n in range(4) for ours, theirs in modules.items()
    }
    names["lm_head"] = "output.weight"
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in names.values()}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names.values()}

    def hook(name: str) -> Callable[[Any, Any], None]:
        return lambda _, inputs: expected[name].append(inputs[0][0].clone())

    for theirs, ours in names.items():
        model.get_submodule(theirs).register_forward_pre_hook(hook(ours))
    with torch.inference_mode():
        for ids in SEQUENCES:
            model(torch.tensor([ids]))
    list(logits(checkpoint, SEQUENCES, observer=lambda name, inputs: found[name].append(inputs.clone())))

    for name in expected:
        assert [len(inputs) for inputs in found[name]] == [len(ids) for ids in SEQUENCES]
        for ours_seen, theirs_seen in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours_seen, theirs_seen, rtol=1e-4, atol=1e-4)


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", layers=6, hidden=512, intermediate=2048, vocab_size=16384)
    checkpoint = open_checkpoint(folder)
    layer = 12 * 512 * 512 * 4

    def alive() -> int:
        tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    before = alive()
    sizes: list[int] = []

    def observer(name: str, _: torch.Tensor) -> None:
        if "ffn_down" in name or name == "output.weight":
            sizes.append(alive() - before)

    list(logits(checkpoint, [IDS], observer=observer))
    assert len(sizes) == 7
    assert all(layer <= size < 1.1 * layer for size in sizes[:-1])
    assert sizes[-1] < 0.1 * layer


def test_progress_counts_the_work_of_all_layers_and_the_head(checkpoint: Checkpoint) -> None:
    calls: list[tuple[int, int]] = []
    list(logits(checkpoint, SEQUENCES, progress=lambda done, total: calls.append((done, total))))

    total = 2 * (4 * (4 * 256 * 256 + 2 * 256 * 512) + 330 * 256)  # two bytes for each weight in a product
    assert [all_ for _, all_ in calls] == [total] * 5 * len(SEQUENCES)
    done = [done for done, _ in calls]
    assert done == sorted(set(done))
    assert done[-1] == total


def test_an_interrupted_run_goes_on_after_the_last_finished_layer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    expected, expected_sums = uninterrupted(checkpoint)
    state = tmp_path / "run.state"
    interrupted(checkpoint, state, Sums())
    assert files_in(tmp_path) == ["run.state"]

    sums, calls = Sums(), list[tuple[int, int]]()
    found = list(logits(checkpoint, SEQUENCES, observer=sums, state=state, progress=lambda *call: calls.append(call)))

    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in sums.names} == {"blk.2", "blk.3", ""}
    assert sums.sums.keys() == expected_sums.sums.keys()
    assert all(np.array_equal(sums.sums[name], expected_sums.sums[name]) for name in sums.sums)
    assert calls[-1][0] == calls[-1][1] == 2 * (2 * (4 * 256 * 256 + 2 * 256 * 512) + 330 * 256)  # what was left
    assert files_in(tmp_path) == []


def test_a_run_that_is_interrupted_among_the_logits_has_no_layer_left_to_do(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    expected, expected_sums = uninterrupted(checkpoint)
    state = tmp_path / "run.state"
    first = logits(checkpoint, SEQUENCES, observer=Sums(), state=state)
    next(first)
    del first
    sums = Sums()
    found = list(logits(checkpoint, SEQUENCES, observer=sums, state=state))

    assert set(sums.names) == {"output.weight"}
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert all(np.array_equal(sums.sums[name], expected_sums.sums[name]) for name in expected_sums.sums)


def spoil(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 0x40
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: spoil(path, 0.0),
        lambda path: spoil(path, 0.3),
        lambda path: spoil(path, 0.6),
        lambda path: spoil(path, 0.999),
        truncate,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("something else"),
        lambda path: path.unlink(),
    ],
    ids=["first byte", "hidden state", "later", "directory", "truncated", "empty", "text", "gone"],
)
def test_a_damaged_state_does_no_harm(checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    expected, expected_sums = uninterrupted(checkpoint)
    state = tmp_path / "run.state"
    interrupted(checkpoint, state, Sums())
    damage(state)
    sums = Sums()
    found = list(logits(checkpoint, SEQUENCES, observer=sums, state=state))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert all(np.array_equal(sums.sums[name], expected_sums.sums[name]) for name in expected_sums.sums)
    assert files_in(tmp_path) == []


def test_a_state_of_something_else_is_ignored(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", layers=4)
    checkpoint = open_checkpoint(folder)
    state = tmp_path / "run.state"

    def starts_anew(checkpoint: Checkpoint, sequences: list[list[int]], observer: Sums) -> bool:
        interrupted(open_checkpoint(folder), state, Sums())
        list(logits(checkpoint, sequences, observer=observer, state=state))
        return observer.names[0] == "blk.0.attn_qkv.weight"

    assert not starts_anew(checkpoint, SEQUENCES, Sums())
    assert starts_anew(checkpoint, [*SEQUENCES[:-1], SEQUENCES[-1][::-1]], Sums())
    assert starts_anew(checkpoint, [SEQUENCES[0] + SEQUENCES[1], SEQUENCES[2]], Sums())
    assert starts_anew(checkpoint, SEQUENCES, OtherSums())
    other_config = Checkpoint(folder, {**checkpoint.config, "layer_norm_eps": 1e-3}, checkpoint.weight_map)
    assert starts_anew(other_config, SEQUENCES, Sums())
    interrupted(checkpoint, state, Sums())
    os.utime(folder / "model.safetensors", (0, 0))
    sums = Sums()
    list(logits(checkpoint, SEQUENCES, observer=sums, state=state))
    assert sums.names[0] == "blk.0.attn_qkv.weight"


def test_with_a_state_the_observer_has_to_be_resumable(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="ResumableObserver"):
        logits(checkpoint, SEQUENCES, observer=lambda *_: None, state=tmp_path / "run.state")


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([IDS, []], "Sequence 2 of 2 has no tokens"),
        ([[1] * 2049], "has 2049 tokens, and the model reads 2048"),
        ([[5, 330]], "token id 330, and the model's vocabulary has 330"),
        ([[-1, 5]], "token id -1"),
    ],
)
def test_sequences_the_model_cannot_read_are_refused_at_once(
    checkpoint: Checkpoint, tmp_path: Path, sequences: list[list[int]], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        logits(checkpoint, sequences)
    with pytest.raises(ConversionError, match=message):
        log_probabilities(checkpoint, sequences, tmp_path / "kept")
    assert files_in(tmp_path) == []


def test_no_sequences_have_no_logits(checkpoint: Checkpoint) -> None:
    assert list(logits(checkpoint, [])) == []


def test_a_device_that_is_not_there_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConversionError, match="'nonsense'"):
        logits(checkpoint, SEQUENCES, device="nonsense")


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("gpt_neox.layers.1.mlp.dense_4h_to_h.weight", "layer 1"),
        ("gpt_neox.layers.0.attention.query_key_value.bias", "layer 0"),
        ("embed_out.weight", "output matrix"),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tensor: str, named: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = random_checkpoint(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state[tensor].view(-1)[7] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=named):
        list(logits(open_checkpoint(folder), SEQUENCES))


def test_a_checkpoint_that_contradicts_its_config_is_refused(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 1024}))
    with pytest.raises(CheckpointError, match=r"dense_h_to_4h.*config\.json"):
        list(logits(open_checkpoint(folder), SEQUENCES))


def test_a_state_that_cannot_be_written_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        list(logits(checkpoint, SEQUENCES, state=tmp_path / "missing" / "run.state"))
