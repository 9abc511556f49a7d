"""W4 and W3 as files: ordinary GGUFs, nearer to the checkpoint than others; and where they cannot be made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, dequantize, quant_shape_to_byte_shape

from convert.calibration import compensation
from convert.calibration.compensation import Compensation
from convert.calibration.moments import Moments
from convert.errors import ConversionError, OutputError
from convert.model.gpt_neox import hyperparameters, map_tensors
from convert.quantization.mixtures import MIXTURES, W3, W4, tensor_types
from convert.reference.texts import verification
from convert.run import Request, run
from convert.source.checkpoint import open_checkpoint
from convert.verification.file_check import check_files
from convert.verification.verify import Options, verify_files
from tests.support.conversions import converted, files_in
from tests.support.llama import loaded


def shapes_of(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, hidden),
        "output.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_qkv.weight": (3 * hidden, hidden),
            f"blk.{layer}.attn_output.weight": (hidden, hidden),
            f"blk.{layer}.ffn_up.weight": (4 * hidden, hidden),
            f"blk.{layer}.ffn_down.weight": (hidden, 4 * hidden),
        }
    return shapes


@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary", "ends"),
    [(4864, 36, 50304, T.Q6_K), (512, 6, 6000, T.Q6_K), (256, 8, 50304, T.Q5_K)],
    ids=["10B", "mid", "mini"],
)
def test_w4_is_no_larger_than_q4_k_m(hidden: int, layers: int, vocabulary: int, ends: T) -> None:
    shapes = shapes_of(hidden, layers, vocabulary)

    def size(types: dict[str, T], names: Sequence[str]) -> int:
        return sum(int(np.prod(quant_shape_to_byte_shape(shapes[name], types[name]))) for name in names)

    w4, standard = (tensor_types(mixture, shapes, layers) for mixture in (W4, MIXTURES["Q4_K_M"]))
    assert {w4["token_embd.weight"], w4["output.weight"]} == {ends}
    in_layers = [name for name in shapes if name.startswith("blk")]
    assert size(w4, in_layers) <= size(standard, in_layers)
    assert size(w4, list(shapes)) <= size(standard, list(shapes))


def test_w3_puts_the_10b_into_5_gb() -> None:
    shapes = shapes_of(4864, 36, 50304)
    types = tensor_types(W3, shapes, 36)
    assert [types[f"blk.{n}.ffn_up.weight"] for n in range(36)] == [T.Q5_K, T.Q4_K, *[T.Q3_K] * 34]
    assert {types["token_embd.weight"], types["output.weight"]} == {T.Q6_K}
    matrices = sum(int(np.prod(quant_shape_to_byte_shape(shape, types[name]))) for name, shape in shapes.items())
    biases_and_norms = 36 * (3 + 1 + 4 + 1 + 4) * 4864 * 4 + 2 * 4864 * 4
    tokenizer = 3e6
    assert matrices + biases_and_norms + tokenizer < 4.95e9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_rounded_model_goes_on_with_what_the_file_has(
    dtype: torch.dtype, demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of attn_qkv are in another order in the file."""
    monkeypatch.setattr(compensation, "product_type", lambda _: dtype)
    original, used = Compensation.layer_matrix, {}

    def layer_matrix(
        rounder: Compensation, name: str, weight: torch.Tensor, moments: Moments
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values, bias = original(rounder, name, weight, moments)
        used[name], used[name.replace("weight", "bias")] = values, bias
        return values, bias

    monkeypatch.setattr(Compensation, "layer_matrix", layer_matrix)
    (path,) = converted(demo_checkpoint, tmp_path, "W4")
    checkpoint = open_checkpoint(demo_checkpoint)
    orders = {
        tensor.name: slice(None) if tensor.row_order is None else tensor.row_order
        for tensor in map_tensors(hyperparameters(checkpoint.config), checkpoint.weight_map)
    }
    in_file = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    assert len(used) == 2 * 4 * 4
    for name, values in used.items():
        found, exact = values.float().numpy()[orders[name]], values.dtype == torch.float32
        np.testing.assert_allclose(found, in_file[name], rtol=1e-5 if exact else 2**-8, atol=1e-6 if exact else 1e-4)


@pytest.fixture(scope="module")
def demo_w4(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = converted(demo_checkpoint, tmp_path_factory.mktemp("w4"), "W4")
    return path


def test_w4_of_the_demo_is_an_ordinary_gguf(demo_w4: Path) -> None:
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(demo_w4).tensors}
    assert {types[f"blk.{i}.{name}.weight"] for i in range(4) for name in ("attn_qkv", "ffn_down")} == {T.Q4_K}
    with loaded(demo_w4) as model:
        ids = model.tokenize("日本の首都は".encode(), add_bos=False)
        model.eval(ids)
        assert model.n_tokens == len(ids)


def test_w3_of_the_demo_is_an_ordinary_gguf(demo_checkpoint: Path, tmp_path: Path) -> None:
    path, standard = converted(demo_checkpoint, tmp_path, "W3", "Q3_K_M")
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(path).tensors}
    assert [types[f"blk.{i}.ffn_up.weight"] for i in range(4)] == [T.Q5_K, T.Q3_K, T.Q3_K, T.Q3_K]
    with loaded(path) as model:
        ids = model.tokenize("日本の首都は".encode(), add_bos=False)
        assert len(list(zip(range(8), model.generate(ids, temp=0), strict=False))) == 8
    report = verify_files(
        open_checkpoint(demo_checkpoint), [path, standard], verification(), tmp_path / "kept", Options(800, 0)
    )
    assert report.passed
    kl = {file.check.mixture: file.groups["all"].mean_kl for file in report.files}
    assert kl["W3"] < 0.8 * kl["Q3_K_M"]


def test_w4_is_closer_to_the_demo_than_q4_k_m(demo_w4: Path, demo_checkpoint: Path, tmp_path: Path) -> None:
    (standard,) = converted(demo_checkpoint, tmp_path, "Q4_K_M")
    assert demo_w4.stat().st_size <= standard.stat().st_size
    report = verify_files(
        open_checkpoint(demo_checkpoint), [demo_w4, standard], verification(), tmp_path / "kept", Options(800, 0)
    )
    found = {file.name: file for file in report.files}
    assert report.passed
    assert found[demo_w4.name].check.mixture == "W4"
    kl = {name: file.groups["all"].mean_kl for name, file in found.items()}
    assert kl[demo_w4.name] < 0.8 * kl[standard.name]


def test_a_bias_may_differ_by_what_rounding_shifts_and_no_more(
    demo_w4: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    name = "blk.1.ffn_up.bias"
    (bias,) = [tensor for tensor in GGUFReader(demo_w4).tensors if tensor.name == name]
    spoiled = tmp_path / demo_w4.name
    content = bytearray(demo_w4.read_bytes())
    content[bias.data_offset : bias.data_offset + bias.n_bytes] = (bias.data + np.float32(5)).tobytes()
    spoiled.write_bytes(content)
    whole, damaged = check_files(open_checkpoint(demo_checkpoint), [demo_w4, spoiled], 2)
    assert whole.findings == []
    (finding,) = damaged.findings
    assert name in finding


def test_w4_and_w3_lose_less_of_a_trained_model_than_q4_k_m(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "weblab-mid"
    paths = converted(folder, tmp_path, "W4", "Q4_K_M", "W3")
    report = verify_files(open_checkpoint(folder), paths, verification(), tmp_path / "kept", Options(1000, 0))
    kl = {file.check.mixture: file.groups["ja"].mean_kl for file in report.files}
    assert kl["W4"] < 0.5 * kl["Q4_K_M"]
    assert kl["W3"] < kl["Q4_K_M"]
    assert paths[2].stat().st_size < paths[0].stat().st_size <= paths[1].stat().st_size


def test_the_manifest_says_what_it_was_rounded_by(
    demo_w4: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = json.loads(demo_w4.with_suffix(".json").read_text())["recipe"]
    assert recipe["compensation"] == compensation.recipe()
    assert (recipe["compensation"]["tokens"], recipe["compensation"]["tokens_if_wide"]) == (8000, 5000)
    before = demo_w4.stat()
    converted(demo_checkpoint, demo_w4.parent, "W4")
    assert demo_w4.stat() == before
    assert "up to date" in capsys.readouterr().err


def test_memory_that_rounding_needs_is_asked_for_before(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts' states in both models alone take more than what is left here."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=700 * 10**6))
    converted(demo_checkpoint, tmp_path, "Q4_K_M")
    with pytest.raises(OutputError, match=r"(?s)Not enough memory.*choose --quant Q4_K_M"):
        converted(demo_checkpoint, tmp_path, "W4")
    assert files_in(tmp_path) == ["weblab-demo-instruction-sft-Q4_K_M.gguf", "weblab-demo-instruction-sft-Q4_K_M.json"]


def test_low_disk_keeps_nothing_to_round_by(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="W4 reads the checkpoint again"):
        run(Request("owner/name", None, ["W4"], tmp_path, low_disk=True))
    assert files_in(tmp_path) == []


def test_without_numba_it_is_refused(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "convert.calibration.compensation", None)
    with pytest.raises(ConversionError, match=r"W4 cannot be made here: .*\n.*Q4_K_M"):
        converted(demo_checkpoint, tmp_path, "W4")
    assert files_in(tmp_path) == []
