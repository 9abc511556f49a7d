"""A .bin that is something other than a state dict; none of its code runs."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.convert.refusals.damage import (
    LAST,
    Malicious,
    State,
    assert_refused,
    edit_weights,
    put,
    refusal,
    small_checkpoint,
)
from tests.support.conversions import converted


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda marker: Malicious(os.system, f"touch '{marker}'"), f"{os.name}.system"),
        (lambda marker: Malicious(exec, f"open({str(marker)!r}, 'w').close()"), "exec"),
        (lambda marker: Malicious(eval, f"open({str(marker)!r}, 'w').close()"), "eval"),
        (lambda marker: Malicious(os.mkdir, str(marker)), f"{os.name}.mkdir"),
    ],
    ids=["os.system", "exec", "eval", "os.mkdir"],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_bin_that_wants_to_run_code_is_refused_and_does_not(
    tmp_path: Path, shards: int, attack: Callable[[Path], Malicious], named: str
) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin", shards=shards)
    path = sorted(folder.glob("*.bin"))[-1]
    marker = tmp_path / "marker"
    torch.save(torch.load(path) | {"more": attack(marker)}, path)
    assert_refused(folder, path.name, "wants to run code", f"({named})")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the attack is none, so that the test says nothing"


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive")
def test_a_torchscript_archive_is_refused_without_torchs_advice_to_run_it(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    with zipfile.ZipFile(folder / "pytorch_model.bin", "a") as archive:
        archive.writestr("pytorch_model/constants.pkl", b"\x80\x02).")
    error = refusal(folder, tmp_path / "output")
    assert "pytorch_model.bin" in error.message
    assert "TorchScript" in error.message
    assert "will likely succeed" not in str(error)


def test_a_bin_older_than_torch_1_6_is_refused_with_the_way_to_save_it_again(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    path = folder / "pytorch_model.bin"
    state = torch.load(path)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    error = refusal(folder, tmp_path / "output")
    assert "pytorch_model.bin" in error.message
    assert "zip" in error.message
    assert "torch.save" in error.remedy
    torch.save(torch.load(path), path)
    converted(folder, tmp_path / "output", "Q8_0")


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: list(state.values()),
        lambda state: {"weights": state},
        lambda state: state | {"step": 1000},
        lambda state: state[LAST],
        lambda state: state | {LAST: state[LAST].to_sparse()},
        lambda state: state | {LAST: state[LAST].to("meta")},
    ],
    ids=["a list", "nested", "a number in it", "one tensor", "sparse", "without data"],
)
def test_a_bin_without_a_state_dict_is_refused(tmp_path: Path, edit: Callable[[State], Any]) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    edit_weights(folder, edit, "bin")
    assert_refused(folder, "pytorch_model.bin", "no state dict")


def test_a_bin_whose_keys_are_no_names_is_refused(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    edit_weights(folder, put(7, torch.ones(2, dtype=torch.float16)), "bin")
    assert_refused(folder, "tensors that a GPT-NeoX of 2 layers has not: 7")
