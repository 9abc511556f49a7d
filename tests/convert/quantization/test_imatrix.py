"""Importance matrices are read and written as llama.cpp does it, and what is none is refused by name."""

import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from convert.errors import ImatrixError, OutputError
from convert.quantization.imatrix import Activations, ImportanceMatrix, open_imatrix, read_imatrix, write_imatrix
from tests.convert.writing.output.support import sha256
from tests.support import llama
from tests.support.imatrices import Tensors, random_tensors, write_with_gguf
from weblab_local.llama.gguf_header import read_header
from weblab_local.models.store import demo_model

QKV, DOWN = "blk.0.attn_qkv.weight", "blk.0.ffn_down.weight"
COLUMNS = {QKV: 256, DOWN: 511}


def small_matrix(activations: Activations | None = None) -> ImportanceMatrix:
    return ImportanceMatrix({QKV: activations or Activations(np.ones(4, np.float32), 7)}, ["a.txt"], 1, 8)


# Reading and writing


def test_a_file_of_llama_cpp_is_read(tmp_path: Path) -> None:
    tensors = random_tensors(COLUMNS, n_tokens=1024)

    matrix = read_imatrix(llama.write_imatrix(tmp_path / "a.gguf", tensors, ["a.txt", "日本語.txt"], 2, 512))

    assert list(matrix.datasets) == ["a.txt", "日本語.txt"]
    assert (matrix.chunk_count, matrix.chunk_size, matrix.n_tokens) == (2, 512, 1024)
    assert matrix.entries.keys() == COLUMNS.keys()
    for name, activations in matrix.entries.items():
        assert activations.n_tokens == 1024
        assert np.array_equal(activations.sums, tensors[f"{name}.in_sum2"][0])


def test_a_file_of_ggufs_own_writer_is_read(tmp_path: Path) -> None:
    tensors = random_tensors(COLUMNS)

    matrix = read_imatrix(write_with_gguf(tmp_path / "a.gguf", tensors))

    assert np.array_equal(matrix.entries[DOWN].sums, tensors[f"{DOWN}.in_sum2"][0])


def test_what_is_written_is_llama_cpps_file_byte_for_byte(tmp_path: Path) -> None:
    theirs = llama.write_imatrix(tmp_path / "theirs.gguf", random_tensors(COLUMNS), ["a.txt", "b.txt"], 3, 512)
    matrix = read_imatrix(theirs)

    write_imatrix(tmp_path / "ours.gguf", matrix)

    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()


def test_llama_cpp_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_imatrix(path, small_matrix())

    header = read_header(path)

    assert header.metadata == {"general.type": "imatrix", "imatrix.chunk_count": 1, "imatrix.chunk_size": 8}
    assert {name: (tensor.ggml_type, tensor.nbytes) for name, tensor in header.tensors.items()} == {
        f"{QKV}.in_sum2": (gguf.GGMLQuantizationType.F32, 16),
        f"{QKV}.counts": (gguf.GGMLQuantizationType.F32, 4),
    }


def test_a_matrix_of_texts_without_a_name_is_read_but_not_written(tmp_path: Path) -> None:
    matrix = read_imatrix(llama.write_imatrix(tmp_path / "a.gguf", random_tensors(COLUMNS), [], 2, 512))

    assert list(matrix.datasets) == []
    with pytest.raises(ImatrixError, match="does not say of which datasets"):
        write_imatrix(tmp_path / "b.gguf", matrix)


def test_a_file_that_cannot_be_written_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.gguf"
    path.write_bytes(b"before")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", no_room)

    with pytest.raises(OutputError, match="cannot be written"):
        write_imatrix(path, small_matrix())

    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


# The weights


def test_the_weights_are_the_mean_squares_in_float32() -> None:
    sums = np.array([1.0, 1e-8, 3e37, 0.0], np.float32)
    matrix = small_matrix(Activations(sums, 3))

    weights = matrix.weights(QKV)

    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == [float(np.float32(value) / np.float32(3)) for value in sums]


def test_a_weight_that_no_token_reached_has_ones_and_one_without_data_none() -> None:
    matrix = small_matrix(Activations(np.zeros(3, np.float32), 0))

    assert np.array_equal(matrix.weights(QKV), [1.0, 1.0, 1.0])  # type: ignore[arg-type]
    assert matrix.weights(DOWN) is None


# Of which file


def test_the_record_names_file_hash_datasets_and_tokens_but_no_folder(tmp_path: Path) -> None:
    datasets = ["/home/somebody/texts.txt", r"C:\Users\somebody\more.txt", "wiki/train.raw"]
    path = write_with_gguf(tmp_path / "matrix.gguf", random_tensors(COLUMNS, n_tokens=8192), datasets=datasets)

    assert open_imatrix(path).record == {
        "file": "matrix.gguf",
        "sha256": sha256(path),
        "datasets": ["texts.txt", "more.txt", "train.raw"],
        "tokens": 8192,
    }


# What is refused


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def instead(name: str, value: Any, dtype: Any = np.float32) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.array(value, dtype)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(f"{QKV}.counts"), rf"there is no {QKV}\.counts"),
        (without(f"{QKV}.in_sum2"), rf"there is no {QKV}\.in_sum2"),
        (lambda _: {}, "holds no data"),
        (instead(f"{QKV}.in_sum2", [1.0, np.nan]), f"NaN or infinite for {QKV}"),
        (instead(f"{QKV}.in_sum2", [1.0, np.inf]), f"NaN or infinite for {QKV}"),
        (instead(f"{QKV}.in_sum2", [1.0, -1e-9]), f"negative sums of squares for {QKV}"),
        (instead(f"{QKV}.in_sum2", [[1.0, 2.0], [3.0, 4.0]]), "2 x 2 values of type F32 .* not one row"),
        (instead(f"{QKV}.in_sum2", [1.0, 2.0], np.float16), "2 values of type F16"),
        (instead(f"{QKV}.counts", [[1.0], [2.0]]), "2 x 1 values"),
        (instead(f"{QKV}.counts", [1.0, 2.0]), rf"no number of tokens in {QKV}\.counts"),
        (instead(f"{QKV}.counts", [-1.0]), "no number of tokens"),
        (instead(f"{QKV}.counts", [0.5]), "no number of tokens"),
        (instead(f"{QKV}.counts", [np.nan]), "no number of tokens"),
        (instead(f"{QKV}.counts", [np.inf]), "no number of tokens"),
        (instead(f"{QKV}.counts", [1], np.int32), "type I32"),
    ],
)
def test_a_damaged_matrix_is_refused_with_the_weight_it_is_about(
    tmp_path: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    path = write_with_gguf(tmp_path / "a.gguf", change(random_tensors(COLUMNS)))

    with pytest.raises(ImatrixError, match=said) as caught:
        read_imatrix(path)

    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "model"}, "This is a model, not an importance matrix"),
        ({"kind": "adapter"}, "This is a GGUF of the type 'adapter'"),
        ({"kind": None}, "This is a GGUF that does not say of what"),
        ({"datasets": None}, "of which datasets"),
        ({"datasets": (1, 2)}, "of which datasets"),
        ({"chunk_count": None}, "of how many tokens"),
        ({"chunk_size": None}, "of how many tokens"),
    ],
)
def test_a_gguf_of_something_else_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = write_with_gguf(tmp_path / "a.gguf", random_tensors(COLUMNS), **fields)

    with pytest.raises(ImatrixError, match=said):
        read_imatrix(path)


def test_a_model_is_refused() -> None:
    with pytest.raises(ImatrixError, match=r"This is a model, not an importance matrix\.\n.*llama-imatrix"):
        read_imatrix(demo_model())


def test_the_older_format_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    name = QKV.encode()
    path.write_bytes(struct.pack(f"<ii{len(name)}sii4f", 1, len(name), name, 2, 4, *[1.0] * 4))

    with pytest.raises(ImatrixError, match=r"older \.dat format") as caught:
        read_imatrix(path)

    assert caught.value.remedy == "Convert it: llama-imatrix --in-file imatrix.dat -o imatrix.gguf"


@pytest.mark.parametrize("content", [b"", b"GG", b"text" * 1000, bytes(100), struct.pack("<ii", 1, 500)])
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(content)

    with pytest.raises(ImatrixError, match="This is no GGUF"):
        read_imatrix(path)


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImatrixError, match="It cannot be read: "):
        read_imatrix(tmp_path / name)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_with_gguf(tmp_path / "whole.gguf", random_tensors({QKV: 8}))
    content = path.read_bytes()
    end = gguf.GGUFReader(path).tensors[-1].data_offset + 4  # after it, padding only
    cut = tmp_path / "cut.gguf"

    for size in range(end):
        cut.write_bytes(content[:size])
        with pytest.raises(ImatrixError):
            read_imatrix(cut)


def test_a_file_with_flipped_bits_is_read_or_refused(tmp_path: Path) -> None:
    content = write_with_gguf(tmp_path / "whole.gguf", random_tensors({QKV: 8})).read_bytes()
    damaged = tmp_path / "damaged.gguf"

    for position in range(len(content)):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1 :])
        with suppress(ImatrixError):
            read_imatrix(damaged)


@pytest.mark.parametrize(
    "activations",
    [
        Activations(np.ones((1, 4), np.float32), 1),
        Activations(np.ones(4), 1),  # type: ignore[arg-type]
        Activations(np.ones(0, np.float32), 1),
        Activations(np.ones(4, np.float32), -1),
    ],
    ids=["two dimensions", "float64", "no columns", "negative count"],
)
def test_a_matrix_is_checked_when_it_is_made(activations: Activations) -> None:
    with pytest.raises(ImatrixError, match=QKV):
        small_matrix(activations)
