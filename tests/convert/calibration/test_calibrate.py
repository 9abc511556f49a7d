"""Calibrating gives the sums that transformers' activations have, resumes, and ends in a quantized file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from transformers import GPTNeoXForCausalLM
from typer.testing import CliRunner

from convert.calibrate import app
from convert.calibration.calibrate import CalibrationTexts, calibrate, calibrated, calibration_texts
from convert.errors import ConversionError, OutputError
from convert.quantization.imatrix import ImatrixFile, ImportanceMatrix, read_imatrix
from convert.reference.texts import Text
from convert.source.checkpoint import Checkpoint, open_checkpoint
from tests.convert.writing.output.support import identity, manifest_of, no_reading
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted, files_in, run_convert
from tests.support.imatrices import random_tensors, write_with_gguf
from tests.support.llama import loaded, tensor_bytes
from weblab_local.models.store import stored_models

SEQUENCES = [[5, 9, 200, 31, 7] * 30, [8, 8], list(range(2, 102))]
MODULES = {
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
TEXTS = [Text("ja", "日本の首都は東京です。" * 5, True), Text("en", "Hello, world! Hello again. " * 5, False)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("calibrate") / "model", layers=3)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


def transformers_sums(folder: Path) -> dict[str, NDArray[np.float64]]:
    """The sums of the squares of what each Linear of the layers is given in transformers."""
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[str, NDArray[np.float64]] = {}

    def collect(name: str) -> Any:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0][0].double().square().sum(0).numpy()
            found[name] = found.get(name, 0) + squares

        return hook

    for number, layer in enumerate(model.gpt_neox.layers):
        for name, module in MODULES.items():
            layer.get_submodule(module).register_forward_pre_hook(collect(f"blk.{number}.{name}.weight"))
    with torch.inference_mode():
        for ids in SEQUENCES:
            model(torch.tensor([ids]))
    return found


def assert_same(found: ImportanceMatrix, expected: ImportanceMatrix) -> None:
    assert found.entries.keys() == expected.entries.keys()
    for name, activations in expected.entries.items():
        assert np.array_equal(found.entries[name].sums, activations.sums), name
        assert found.entries[name].n_tokens == activations.n_tokens


def test_the_sums_are_those_of_transformers(folder: Path, checkpoint: Checkpoint) -> None:
    matrix = calibrate(checkpoint, SEQUENCES, datasets=["texts.txt"], n_ctx=150)

    expected = transformers_sums(folder)
    assert matrix.entries.keys() == expected.keys()
    for name, sums in expected.items():
        assert matrix.entries[name].sums.dtype == np.float32
        np.testing.assert_allclose(matrix.entries[name].sums, sums, rtol=1e-4)
        assert matrix.entries[name].n_tokens == 252
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (1, 150, ["texts.txt"])


def test_the_output_matrix_is_not_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.reference.reference._run_head", no_reading)

    matrix = calibrate(checkpoint, SEQUENCES, datasets=["texts.txt"])

    assert not any(name.startswith(("output", "token_embd")) for name in matrix.entries)


def test_an_interrupted_calibration_goes_on_and_gives_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shares: list[float] = []

    def interrupt(done: int, total: int) -> None:
        if done > 0.5 * total:
            raise KeyboardInterrupt

    def watch(_: int, total: int) -> None:
        shares.append(total)

    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint, SEQUENCES, datasets=["a"], state=state, progress=interrupt)
    assert state.exists()
    resumed = calibrate(checkpoint, SEQUENCES, datasets=["a"], state=state, progress=watch)
    first_total = shares[0]
    uninterrupted = calibrate(checkpoint, SEQUENCES, datasets=["a"], progress=watch)

    assert first_total == 2 * shares[-1] // 3
    assert_same(resumed, uninterrupted)
    assert not state.exists()


# The file


def made(
    checkpoint: Checkpoint, path: Path, texts: list[Text] = TEXTS, max_tokens: int = 2000, **kw: Any
) -> ImatrixFile:
    return calibrated(checkpoint, CalibrationTexts("mine.txt", texts, max_tokens), path, **kw)


def test_the_file_says_what_it_was_made_of(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(checkpoint, tmp_path / "a.imatrix.gguf")

    assert found.matrix.calibration is not None
    assert found.matrix.calibration.n_tokens == found.matrix.n_tokens
    assert sum(found.matrix.calibration.shares.values()) == pytest.approx(1)
    assert all(share > 0.1 for share in found.matrix.calibration.shares.values())
    assert found.datasets == ["mine.txt"]
    assert files_in(tmp_path) == ["a.imatrix.gguf"]
    said = capsys.readouterr().err
    assert said.startswith(f"calibrating on {found.matrix.n_tokens} tokens in 2 sequences, ")
    assert "% Japanese and " in said
    assert "of computing at this machine's speed" in said


def test_it_is_made_once_of_the_same_and_again_of_anything_else(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.imatrix.gguf"
    first = made(checkpoint, path)
    before = identity(path)
    with monkeypatch.context() as context:
        context.setattr("convert.calibration.calibrate.observe_layers", no_reading)
        assert made(checkpoint, path).sha256 == first.sha256
    assert identity(path) == before

    hashes = {first.sha256, made(checkpoint, path, TEXTS[::-1]).sha256}
    hashes.add(made(checkpoint, path, max_tokens=50).sha256)
    other = open_checkpoint(random_checkpoint(tmp_path / "model", layers=3, seed=1))
    hashes.add(made(other, path, max_tokens=50).sha256)
    assert len(hashes) == 4


def test_a_matrix_of_somebody_else_is_replaced_only_by_force(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_with_gguf(tmp_path / "a.imatrix.gguf", random_tensors({"blk.0.attn_qkv.weight": 256}))
    before = path.read_bytes()

    with pytest.raises(OutputError, match="was not made by calibrating"):
        made(checkpoint, path)

    assert path.read_bytes() == before
    assert len(made(checkpoint, path, force=True).matrix.entries) == 12


def test_too_little_text_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="not enough text"):
        made(checkpoint, tmp_path / "a.imatrix.gguf", [Text("en", "!", False)])


# Converting with it


def test_converting_with_auto_is_converting_with_the_file_that_it_leaves(
    demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "weblab-demo-instruction-sft"
    store = tmp_path / "weblab-home" / "models"
    (path,) = converted(demo_checkpoint, store, "Q4_0", imatrix="auto")
    imatrix = store / f"{name}.imatrix.gguf"
    (with_file,) = converted(demo_checkpoint, tmp_path / "b", "Q4_0", imatrix=imatrix)
    (without,) = converted(demo_checkpoint, tmp_path / "c", "Q4_0")

    assert tensor_bytes(path) == tensor_bytes(with_file) != tensor_bytes(without)
    with loaded(path) as model:
        assert model.n_vocab() > 0
    fields = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    calibration = read_imatrix(imatrix).calibration
    assert calibration is not None
    assert fields["quantize.imatrix.file"] == imatrix.name
    assert fields["weblab.calibration.texts_sha256"] == calibration_texts().sha256 == calibration.texts_sha256
    assert fields["weblab.calibration.tokens"] == calibration.n_tokens
    assert fields["weblab.calibration.share.ja"] == calibration.shares["ja"]
    assert manifest_of(path)["recipe"]["imatrix"]["calibration"]["texts_sha256"] == calibration.texts_sha256
    assert [model.path for model in stored_models()] == [path]

    imatrix.unlink()  # not needed to see that nothing has changed
    capsys.readouterr()
    converted(demo_checkpoint, store, "Q4_0", imatrix="auto")
    assert capsys.readouterr().err == f"{path} is up to date.\n"


def test_low_disk_has_no_checkpoint_to_calibrate(tmp_path: Path) -> None:
    ran = run_convert("owner/name", "--imatrix", "auto", "--low-disk", "--output", tmp_path / "out")

    assert ran.returncode == 1
    assert ran.stderr.startswith("convert: --imatrix auto runs the whole checkpoint, of which --low-disk never has")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_texts_of_the_user(folder: Path, tmp_path: Path) -> None:

    (tmp_path / "my texts.txt").write_text("Hello, world!\n\n" * 9, encoding="utf-8")
    path = tmp_path / "out" / "mine.gguf"
    arguments = [folder, "--texts", tmp_path / "my texts.txt", "--tokens", 20, "--output", path]

    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert (ran.exit_code, ran.stdout) == (0, f"{path}\n")
    matrix = read_imatrix(path)
    assert matrix.datasets == ["my texts.txt"]
    assert matrix.n_tokens <= 20
    assert matrix.calibration is not None
    assert matrix.calibration.shares == {"en": 1.0, "ja": 0.0}
    missing = CliRunner().invoke(app, [str(folder), "--texts", str(tmp_path / "none.txt")])
    assert missing.exit_code == 1
    assert missing.stderr.startswith(f"calibrate: {tmp_path / 'none.txt'} cannot be read")
