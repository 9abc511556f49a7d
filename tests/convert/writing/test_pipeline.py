"""The weights in the GGUF are the checkpoint's, whatever form it has and however the work is divided."""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import GPTNeoXForCausalLM

from convert.quantization.mixtures import MIXTURES
from convert.writing.plan import CHUNK_WEIGHTS
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted, run_convert

Dtype = Literal["float16", "bfloat16", "float32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("pipeline") / "model")


@pytest.fixture(scope="module")
def one_at_a_time(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The file of every quantization, each made by a conversion of its own."""
    folder = tmp_path_factory.mktemp("one-at-a-time")
    return {name: converted(checkpoint, folder, name)[0].read_bytes() for name in MIXTURES}


def tensors_in(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors as gguf's reader gives them: F32 and F16 as numbers, quantized ones as rows of bytes."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def tensors_of_transformers(folder: Path) -> dict[str, torch.Tensor]:
    """transformers' state dict under llama.cpp's names, with the fused rows of queries, keys and values sorted."""
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto")
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if "query_key_value" in name:
            per_head = [tensor[start : start + 3 * head_dim] for start in range(0, len(tensor), 3 * head_dim)]
            queries, keys, values = zip(*(rows.split(head_dim) for rows in per_head), strict=True)
            tensor = torch.cat([*queries, *keys, *values])
        tensors[str(names.get_name(name, try_suffixes=(".weight", ".bias")))] = tensor
    return tensors


def assert_same(actual: NDArray[Any], expected: torch.Tensor) -> None:
    assert actual.dtype == expected.numpy().dtype
    np.testing.assert_array_equal(actual, expected.numpy())


def test_the_command_prints_the_paths_on_stdout_and_the_sizes_that_the_files_then_have(
    checkpoint: Path, tmp_path: Path
) -> None:
    done = run_convert(checkpoint, "--output", tmp_path, "--quant", "Q8_0,q4_k_m IQ4_XS")

    assert done.returncode == 0, done.stderr
    paths = [tmp_path / f"model-{name}.gguf" for name in ("Q8_0", "Q4_K_M", "IQ4_XS")]
    assert done.stdout == "".join(f"{path}\n" for path in paths)
    planned = re.findall(r"^  \w+: (\d+) bytes \(.*\) to (.+)$", done.stderr, re.MULTILINE)
    assert planned == [(str(path.stat().st_size), str(path)) for path in paths]


def test_all_quantizations_have_the_size_that_was_planned(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = converted(checkpoint, tmp_path, *MIXTURES)

    planned = re.findall(r"^  \w+: (\d+) bytes \(.*\) to (.+)$", capsys.readouterr().err, re.MULTILINE)
    assert planned == [(str(path.stat().st_size), str(path)) for path in paths]


def test_several_quantizations_from_one_reading_are_those_of_one_at_a_time(
    checkpoint: Path, one_at_a_time: dict[str, bytes], tmp_path: Path
) -> None:
    paths = converted(checkpoint, tmp_path, *MIXTURES)

    for name, path in zip(MIXTURES, paths, strict=True):
        assert path.read_bytes() == one_at_a_time[name], name


@pytest.mark.parametrize("weights_per_chunk", [5_000, CHUNK_WEIGHTS])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bytes_do_not_depend_on_how_the_work_is_divided(
    checkpoint: Path,
    one_at_a_time: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    weights_per_chunk: int,
) -> None:
    monkeypatch.setattr("convert.writing.pipeline.CHUNK_WEIGHTS", weights_per_chunk)

    paths = converted(checkpoint, tmp_path, "F16", "Q4_K_M", threads=threads)

    assert [path.read_bytes() for path in paths] == [one_at_a_time["F16"], one_at_a_time["Q4_K_M"]]


def test_the_bytes_do_not_depend_on_where_the_checkpoint_lies(
    checkpoint: Path, one_at_a_time: dict[str, bytes], tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere" / checkpoint.name, copy_function=shutil.copyfile)

    (path,) = converted(copy, tmp_path, "Q4_K_M")

    assert path.read_bytes() == one_at_a_time["Q4_K_M"]


@pytest.mark.parametrize("config_form", ["old", "new"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_bytes_do_not_depend_on_the_form_of_the_checkpoint(
    one_at_a_time: dict[str, bytes],
    tmp_path: Path,
    form: Literal["safetensors", "bin"],
    shards: int,
    config_form: Literal["old", "new"],
) -> None:
    folder = random_checkpoint(tmp_path / "model", form=form, shards=shards, config_form=config_form)
    assert (len(list(folder.glob(f"*.{form}"))) > 1) == (shards > 1)

    paths = converted(folder, tmp_path, "F16", "Q4_K_M")

    assert [path.read_bytes() for path in paths] == [one_at_a_time["F16"], one_at_a_time["Q4_K_M"]]


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"layers": 1, "hidden": 96, "heads": 3, "intermediate": 160},
        {"layers": 3, "hidden": 64, "heads": 8, "intermediate": 64, "use_parallel_residual": False},
        {"layers": 1, "hidden": 64, "heads": 1, "intermediate": 64, "vocab_size": 400},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_tensor_is_that_of_transformers(tmp_path: Path, dtype: Dtype, shape: dict[str, Any]) -> None:
    folder = random_checkpoint(tmp_path / "model", dtype=dtype, **shape)
    expected = tensors_of_transformers(folder)

    as_f32, as_f16 = (tensors_in(path) for path in converted(folder, tmp_path, "F32", "F16"))

    assert as_f32.keys() == as_f16.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same(as_f32[name], tensor.float())
        assert_same(as_f16[name], tensor.half() if tensor.ndim == 2 else tensor.float())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_eight_bits_are_those_of_numpy(tmp_path: Path, dtype: Dtype) -> None:
    folder = random_checkpoint(tmp_path / "model", dtype=dtype)
    expected = tensors_of_transformers(folder)

    actual = tensors_in(converted(folder, tmp_path, "Q8_0")[0])

    for name, tensor in expected.items():
        rows = tensor.float().numpy()
        blocks = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0) if rows.ndim == 2 else rows
        np.testing.assert_array_equal(actual[name], blocks)


def test_halves_too_small_for_their_normal_range_are_rounded_as_torch_does(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = random_checkpoint(tmp_path / "model", dtype="float32", layers=1, hidden=64, intermediate=64)
    state = load_file(folder / "model.safetensors")
    state["embed_out.weight"] = torch.logspace(-12, 4.8, state["embed_out.weight"].numel()).reshape(-1, 64)
    state["embed_out.weight"][::2] *= -1
    save_file(state, folder / "model.safetensors", {"format": "pt"})

    actual = tensors_in(converted(folder, tmp_path, "F16")[0])

    assert_same(actual["output.weight"], state["embed_out.weight"].half())


def test_biases_that_the_checkpoint_has_not_are_zeros(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", attention_bias=False)
    stored = tensors_of_transformers(folder)

    actual = tensors_in(converted(folder, tmp_path, "Q8_0")[0])

    absent = {f"blk.{layer}.{name}.bias" for layer in (0, 1) for name in ("attn_qkv", "attn_output")}
    assert actual.keys() - stored.keys() == absent
    for name in absent:
        assert not actual[name].any()
        assert actual[name].shape == (768 if "qkv" in name else 256,)


@pytest.mark.parametrize("head_is_stored", [False, True])
def test_tied_embeddings_are_written_twice(tmp_path: Path, head_is_stored: bool) -> None:
    from safetensors.torch import load_file, save_file

    folder = random_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    state = load_file(folder / "model.safetensors")
    assert "embed_out.weight" not in state
    if head_is_stored:  # transformers leaves it unread
        save_file(state | {"embed_out.weight": torch.ones(330, 256).half()}, folder / "model.safetensors")

    actual = tensors_in(converted(folder, tmp_path, "F16")[0])

    assert_same(actual["token_embd.weight"], state["gpt_neox.embed_in.weight"])
    assert_same(actual["output.weight"], state["gpt_neox.embed_in.weight"])


def test_rows_of_the_embedding_without_a_token_become_unused_tokens(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", vocab_size=400)
    n_tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert n_tokens < 400

    reader = gguf.GGUFReader(converted(folder, tmp_path, "Q8_0")[0])

    types = reader.fields["tokenizer.ggml.token_type"].contents()
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert [i for i, kind in enumerate(types) if kind == gguf.TokenType.UNUSED] == list(range(n_tokens, 400))
    assert len(set(tokens)) == len(tokens) == 400
