"""Every tensor has the bytes that llama.cpp's own quantizer makes of it."""

from pathlib import Path

import pytest

from convert.errors import UnsupportedModelError
from convert.quantization.mixtures import FALLBACKS, MIXTURES, mixture
from convert.run import Request, run
from tests.support.checkpoints import random_checkpoint
from tests.support.llama import quantize, tensor_bytes

QUANTIZED = [name for name in MIXTURES if name not in ("F32", "F16")]


def convert_all(checkpoint: Path, output: Path) -> dict[str, Path]:
    paths = run(Request(str(checkpoint), None, list(MIXTURES), output))
    return dict(zip(MIXTURES, paths, strict=True))


def assert_same_as_llama_cpp(ours: dict[str, Path], full: str, scratch: Path) -> None:
    for name in MIXTURES:
        if name in ("F32", full):
            continue
        theirs = quantize(ours[full], scratch / f"{name}.gguf", MIXTURES[name].file_type)
        expected = tensor_bytes(theirs)
        found = tensor_bytes(ours[name])
        assert {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in expected.items()}, name
        assert found == expected, name


@pytest.mark.parametrize("layers", [8, 9, 16, 36])
def test_every_mixture_is_llama_cpps_at_any_depth(tmp_path: Path, layers: int) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", layers=layers, intermediate=256)
    ours = convert_all(checkpoint, tmp_path / "out")
    assert_same_as_llama_cpp(ours, "F16", tmp_path)


def test_an_fp32_checkpoint_is_quantized_as_from_its_f32_gguf(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", layers=8, dtype="float32")
    ours = convert_all(checkpoint, tmp_path / "out")
    assert_same_as_llama_cpp(ours, "F32", tmp_path)


@pytest.mark.parametrize(("hidden", "heads", "intermediate"), [(160, 2, 320), (192, 2, 512), (512, 4, 544)])
def test_rows_that_256_does_not_divide_fall_back_as_in_llama_cpp(
    tmp_path: Path, hidden: int, heads: int, intermediate: int
) -> None:
    checkpoint = random_checkpoint(
        tmp_path / "model", layers=8, hidden=hidden, heads=heads, intermediate=intermediate, rotary_pct=0.5
    )
    ours = convert_all(checkpoint, tmp_path / "out")
    assert_same_as_llama_cpp(ours, "F32", tmp_path)


def test_rows_that_32_does_not_divide_stay_f16(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", layers=2, hidden=80, heads=2, intermediate=120, rotary_pct=0.5)
    ours = convert_all(checkpoint, tmp_path / "out")
    assert_same_as_llama_cpp(ours, "F32", tmp_path)


def test_the_demo_is_quantized_as_by_llama_cpp(tmp_path: Path, demo_checkpoint: Path) -> None:
    assert_same_as_llama_cpp(convert_all(demo_checkpoint, tmp_path / "out"), "F16", tmp_path)


def test_every_fallback_has_a_smaller_block() -> None:
    from gguf import GGML_QUANT_SIZES

    for wanted, smaller in FALLBACKS.items():
        assert GGML_QUANT_SIZES[smaller][0] < GGML_QUANT_SIZES[wanted][0]


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_mixture_is_found_in_any_case(name: str) -> None:
    assert mixture(f" {name.lower()} ").name == name


def test_an_unknown_mixture_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnsupportedModelError, match="Q4_K_M"):
        mixture("Q9_Z")
