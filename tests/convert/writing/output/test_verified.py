"""A conversion ends with a comparison: what is not the checkpoint does not get the name that programs look for."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from convert.errors import ConversionError, VerificationError
from convert.quantization.quantize import quantize_rows
from convert.verification import file_check, tensor_check, verify
from convert.verification.kl_limits import KL_LIMITS
from tests.support import windows
from tests.support.conversions import converted, files_in
from tests.support.systems import on_linux

NAME = "weblab-demo-instruction-sft"


@pytest.fixture(autouse=True)
def _with_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERIFY")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def verification_of(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["verification"]


def test_the_manifest_has_the_figures(demo_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q8, q4 = converted(demo_checkpoint, folder, "Q8_0", "Q4_K_M")
    first, second = verification_of(q8), verification_of(q4)
    assert first["passed"] is second["passed"] is True
    assert first["n_tokens"] == verify.SHORT_TOKENS
    assert 0 < first["mean_kl"]["ja"] < second["mean_kl"]["ja"] < KL_LIMITS["Q4_K_M"]
    said = capsys.readouterr().err
    assert f"{NAME}-Q8_0.gguf passes: mean KL" in said
    assert f"{NAME}-Q4_K_M.gguf passes: mean KL" in said


def test_what_fails_is_kept_under_another_name(
    demo_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = converted(demo_checkpoint, folder, "Q8_0")
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()

    def spoil(rows: NDArray[np.float32], *more: Any) -> NDArray[np.uint8]:
        return quantize_rows(np.zeros_like(rows) if rows.shape == (1024, 256) else rows, *more)

    monkeypatch.setattr("convert.writing.pipeline.quantize_rows", spoil)
    with pytest.raises(VerificationError, match=r"Q8_0.gguf.unverified: .*ffn_up.weight(.|\n)*VERIFY=0"):
        converted(demo_checkpoint, folder, "Q8_0", force=True)

    assert files_in(folder) == [f"{NAME}-Q8_0.gguf", f"{NAME}-Q8_0.gguf.unverified", f"{NAME}-Q8_0.json"]
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    monkeypatch.undo()
    converted(demo_checkpoint, folder, "Q8_0", force=True)
    assert files_in(folder) == [f"{NAME}-Q8_0.gguf", f"{NAME}-Q8_0.json"]


def test_too_much_divergence_fails(demo_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "KL_LIMITS", {"Q4_K_M": 1e-6})
    with pytest.raises(VerificationError, match=r"Mean KL divergence of Japanese.*the limit of Q4_K_M is 1e-06"):
        converted(demo_checkpoint, folder, "Q4_K_M", "Q8_0")
    assert files_in(folder) == [f"{NAME}-Q4_K_M.gguf.unverified", f"{NAME}-Q8_0.gguf", f"{NAME}-Q8_0.json"]


def test_what_cannot_be_compared_is_kept(
    demo_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ConversionError("There is no room for the reference.")

    monkeypatch.setattr(verify, "short_verification", fail)
    (path,) = converted(demo_checkpoint, folder, "Q8_0")
    assert verification_of(path) is None
    assert (
        "could not be compared with the checkpoint, and is kept as it is: There is no room" in capsys.readouterr().err
    )


def test_what_cannot_be_compared_for_want_of_a_place_is_kept(
    demo_checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", str(tmp_path / "file"))
    (path,) = converted(demo_checkpoint, folder, "Q8_0")
    assert verification_of(path) is None


def test_it_can_be_left_out(
    demo_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERIFY", "0")
    (path,) = converted(demo_checkpoint, folder, "Q8_0")
    assert verification_of(path) is None
    assert "VERIFY=0" in capsys.readouterr().err


def test_an_interrupt_during_the_comparison_leaves_the_finished_file(
    demo_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(verify, "short_verification", interrupted)
        with pytest.raises(KeyboardInterrupt):
            converted(demo_checkpoint, folder, "Q8_0")

    path = folder / f"{NAME}-Q8_0.gguf"
    assert files_in(folder) == [path.name, f"{NAME}-Q8_0.json"]
    assert verification_of(path) is None
    said = capsys.readouterr().err
    assert "interrupted: the result is finished and kept, but not compared" in said
    assert f"python -m convert.verify {demo_checkpoint} {path}" in said
    assert converted(demo_checkpoint, folder, "Q8_0") == [path]
    assert f"{path} is up to date." in capsys.readouterr().err


@on_linux
@pytest.mark.parametrize("cut_off", [False, True], ids=["finished", "interrupted"])
def test_the_comparison_has_no_file_mapped_any_more_when_it_gets_its_name(
    demo_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, cut_off: bool
) -> None:
    """Windows renames no file that is mapped."""

    def check(*arguments: Any) -> Any:
        assert f"{NAME}-Q8_0.gguf.partial" in windows.mapped_files()
        if cut_off:
            raise KeyboardInterrupt
        return tensor_check.check_tensors(*arguments)

    monkeypatch.setattr(file_check, "check_tensors", check)
    monkeypatch.setattr(os, "replace", windows.refusing(os.replace, position=0))
    with pytest.raises(KeyboardInterrupt) if cut_off else nullcontext():
        converted(demo_checkpoint, folder, "Q8_0")
    assert files_in(folder) == [f"{NAME}-Q8_0.gguf", f"{NAME}-Q8_0.json"]
