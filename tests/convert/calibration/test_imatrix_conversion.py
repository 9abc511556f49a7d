"""With an importance matrix, too, every tensor has llama.cpp's bytes; file and manifest say which one it was."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from convert.errors import ImatrixError, OutputError
from convert.quantization.mixtures import MIXTURES
from tests.convert.writing.output.support import identity, manifest_of, sha256
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted, files_in, run_convert
from tests.support.imatrices import Tensors, random_tensors, write_with_gguf
from tests.support.llama import quantize, tensor_bytes, write_imatrix

LAYERS = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def columns(layers: int, hidden: int, intermediate: int, *others: str) -> dict[str, int]:
    """The columns of every matrix in the layers of a GPT-NeoX, and of `others`, which are as wide as the model."""
    names = [f"blk.{layer}.{part}.weight" for layer in range(layers) for part in LAYERS]
    return {name: intermediate if "ffn_down" in name else hidden for name in [*names, *others]}


def quantizers_weights(tensors: Tensors) -> dict[str, NDArray[np.float32]]:
    """As `load_imatrix` in llama.cpp's tools/quantize/quantize.cpp makes them of the tensors of a file."""
    weights = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            count = tensors[name.replace(".in_sum2", ".counts")]
            weights[name.removesuffix(".in_sum2")] = (sums / count if count > 0 else np.ones_like(sums))[0]
    return weights


def assert_same_as_llama_cpp(checkpoint: Path, tensors: Tensors, scratch: Path, full: str) -> None:
    imatrix = write_with_gguf(scratch / "imatrix.gguf", tensors)
    ours = dict(zip(MIXTURES, converted(checkpoint, scratch / "out", *MIXTURES, imatrix=imatrix), strict=True))
    weights = quantizers_weights(tensors)
    for name, mixture in MIXTURES.items():
        theirs = quantize(ours[full], scratch / f"{name}.gguf", mixture.file_type, weights)
        expected, found = tensor_bytes(theirs), tensor_bytes(ours[name])
        if full == "F16" and name == "F32":
            continue
        assert {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in expected.items()}, name
        assert found == expected, name


@pytest.mark.parametrize(
    ("layers", "others"), [(8, ()), (16, ("output.weight",)), (9, ("output.weight", "token_embd.weight"))]
)
def test_every_mixture_is_llama_cpps(tmp_path: Path, layers: int, others: tuple[str, ...]) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", layers=layers, intermediate=256)
    tensors = random_tensors(columns(layers, 256, 256, *others))
    for half in (".in_sum2", ".counts"):
        del tensors[f"blk.3.ffn_up.weight{half}"]
    tensors["blk.4.ffn_down.weight.counts"][:] = 0  # llama-quantize takes ones then
    tensors["blk.5.ffn_down.weight.in_sum2"][:, 32:96] = 0  # columns that were never reached

    assert_same_as_llama_cpp(checkpoint, tensors, tmp_path, "F16")


def test_rows_that_256_does_not_divide_fall_back_as_in_llama_cpp(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(
        tmp_path / "model",
        layers=8,
        hidden=160,
        intermediate=544,
        rotary_pct=0.5,
        dtype="float32",
        tie_word_embeddings=True,
    )

    assert_same_as_llama_cpp(checkpoint, random_tensors(columns(8, 160, 544, "output.weight")), tmp_path, "F32")


# What is said of it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("model") / "model", layers=1, hidden=256, intermediate=512)


def matrix_file(path: Path, seed: int = 0, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_with_gguf(path, random_tensors(columns(1, 256, 512), 1024, seed), **fields)


def header(path: Path) -> dict[str, Any]:
    prefix = "quantize.imatrix."
    found = gguf.GGUFReader(path).fields
    return {
        name.removeprefix(prefix): (field.types[0].name, field.contents())
        for name, field in found.items()
        if name.startswith(prefix)
    }


def test_the_command_takes_a_matrix_and_says_what_becomes_of_it(checkpoint: Path, tmp_path: Path) -> None:
    imatrix = matrix_file(tmp_path / "my imatrix.gguf", datasets=["/home/somebody/texts.txt", "more.txt"])

    ran = run_convert(checkpoint, "--imatrix", imatrix, "--quant", "Q4_0", "--output", tmp_path / "out")

    path = tmp_path / "out" / "model-Q4_0.gguf"
    assert (ran.returncode, ran.stdout) == (0, f"{path}\n")
    assert "importance matrix my imatrix.gguf: 1024 tokens of texts.txt, more.txt\n" in ran.stderr
    assert "It has no data for token_embd.weight, output.weight, which will be quantized without.\n" in ran.stderr
    assert header(path) == {
        "file": ("STRING", "my imatrix.gguf"),
        "dataset": ("STRING", "texts.txt"),
        "entries_count": ("UINT32", 4),
        "chunks_count": ("UINT32", 2),
    }
    assert manifest_of(path)["recipe"]["imatrix"] == {
        "file": "my imatrix.gguf",
        "sha256": sha256(imatrix),
        "datasets": ["texts.txt", "more.txt"],
        "tokens": 1024,
    }
    assert str(tmp_path).encode() not in path.read_bytes()
    assert b"/home" not in path.read_bytes() + path.with_suffix(".json").read_bytes()


def test_what_the_matrix_does_not_say_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    tensors = random_tensors(columns(1, 256, 512))
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", tensors, [], chunk_count=0, chunk_size=512)

    (path,) = converted(checkpoint, tmp_path, "Q4_0", imatrix=imatrix)

    assert header(path) == {"file": ("STRING", "imatrix.gguf"), "entries_count": ("UINT32", 4)}


def test_without_a_matrix_nothing_is_said_of_one(checkpoint: Path, tmp_path: Path) -> None:
    (path,) = converted(checkpoint, tmp_path, "Q4_0")

    assert header(path) == {}
    assert "imatrix" not in manifest_of(path)["recipe"]


# Up to date


def test_with_the_same_matrix_it_is_up_to_date_wherever_that_lies(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = converted(checkpoint, tmp_path, "Q4_0", imatrix=matrix_file(tmp_path / "a" / "imatrix.gguf"))
    before = identity(path)
    capsys.readouterr()

    converted(checkpoint, tmp_path, "Q4_0", imatrix=matrix_file(tmp_path / "b" / "imatrix.gguf"))

    assert capsys.readouterr().err == f"{path} is up to date.\n"
    assert identity(path) == before


@pytest.mark.parametrize(("name", "seed"), [("imatrix.gguf", 1), ("renamed.gguf", 0), (None, 0)])
def test_with_another_matrix_it_is_replaced_only_by_force(
    checkpoint: Path, tmp_path: Path, name: str | None, seed: int
) -> None:
    (path,) = converted(checkpoint, tmp_path, "Q4_0", imatrix=matrix_file(tmp_path / "imatrix.gguf"))
    first = path.read_bytes()
    imatrix = None if name is None else matrix_file(tmp_path / name, seed)

    with pytest.raises(OutputError, match=r"exists already, .* with these options\.\nGive --force"):
        converted(checkpoint, tmp_path, "Q4_0", imatrix=imatrix)

    assert path.read_bytes() == first
    converted(checkpoint, tmp_path, "Q4_0", imatrix=imatrix, force=True)
    assert path.read_bytes() != first


def test_a_matrix_is_wanted_where_there_is_a_file_made_without(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path, "Q4_0")

    with pytest.raises(OutputError, match="exists already"):
        converted(checkpoint, tmp_path, "Q4_0", imatrix=matrix_file(tmp_path / "imatrix.gguf"))


# The wrong matrix


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (columns(2, 256, 512), r"has data for blk\.1\.\w+\.weight, which this model has not"),
        (columns(1, 128, 512), r"128 columns for blk\.0\.\w+\.weight, which has 256 in this model"),
        ({"token_embd.weight": 330}, r"330 columns for token_embd\.weight, which has 256"),
        ({"blk.0.attn_norm.weight": 256}, "which this model has not"),
        ({"blk.0.attn_q.weight": 256}, "which this model has not"),
    ],
)
def test_a_matrix_of_another_model_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, others: dict[str, int], said: str
) -> None:
    imatrix = write_with_gguf(tmp_path / "imatrix.gguf", random_tensors(others))

    with pytest.raises(ImatrixError, match=rf"imatrix\.gguf is of another model: .*{said}") as caught:
        converted(checkpoint, tmp_path / "out", "Q4_0", imatrix=imatrix, force=True)

    assert "leave --imatrix out" in caught.value.remedy
    assert files_in(tmp_path / "out") == []


def test_a_file_that_is_no_matrix_is_an_error_without_a_traceback(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Hello, world!")

    ran = run_convert(checkpoint, "--imatrix", tmp_path / "texts.txt", "--output", tmp_path / "out")

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"convert: {tmp_path / 'texts.txt'}: This is no GGUF, which importance matrices are.\n"
        f"Give --imatrix the GGUF that llama-imatrix wrote.\n"
    )
