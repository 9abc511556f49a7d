"""The reference's log-probabilities on disk are transformers' to fp16, computed once, complete or absent."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.errors import CheckpointError, OutputError
from convert.reference.log_probabilities import LogProbabilities, log_probabilities
from convert.source.checkpoint import Checkpoint, open_checkpoint
from tests.convert.reference.test_reference import SEQUENCES, Interrupter, transformers_logits, truncate
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import ROOT, files_in


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(random_checkpoint(tmp_path_factory.mktemp("kept") / "model", layers=4, shards=3))


def exact(folder: Path) -> list[torch.Tensor]:
    return [torch.from_numpy(found).double().log_softmax(1) for found in transformers_logits(folder, SEQUENCES)]


def test_log_probabilities_are_those_of_transformers_to_fp16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    kept = log_probabilities(checkpoint, SEQUENCES, tmp_path / "kept")
    assert len(kept) == len(SEQUENCES)
    for found, expected in zip(kept, exact(checkpoint.folder), strict=True):
        assert isinstance(found, np.memmap)
        assert found.dtype == np.float16
        torch.testing.assert_close(torch.from_numpy(found.astype(np.float64)), expected, rtol=2**-11, atol=1e-4)


def test_normalized_again_their_rounding_is_below_what_a_divergence_shows(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for found, expected in zip(
        log_probabilities(checkpoint, SEQUENCES, tmp_path / "kept"), exact(checkpoint.folder), strict=True
    ):
        normalized = torch.from_numpy(found.astype(np.float64)).log_softmax(1)
        divergence = (expected.exp() * (expected - normalized)).sum(1)
        assert divergence.max() < 3e-6


def test_log_probabilities_are_computed_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    calls: list[tuple[int, int]] = []

    def computed(sequences: list[list[int]]) -> bool:
        calls.clear()
        kept = log_probabilities(checkpoint, sequences, path, progress=lambda *call: calls.append(call))
        assert [found.shape for found in kept] == [(len(ids), 330) for ids in sequences]
        return bool(calls)

    assert computed(SEQUENCES)
    assert not computed(SEQUENCES)
    assert computed(SEQUENCES[:2])
    assert not computed(SEQUENCES[:2])
    truncate(path)
    assert computed(SEQUENCES[:2])
    path.write_text("something else")
    assert computed(SEQUENCES[:2])
    assert files_in(tmp_path) == ["kept"]


def test_interrupted_log_probabilities_go_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, whole = tmp_path / "kept", log_probabilities(checkpoint, SEQUENCES, tmp_path / "whole")
    for share in (0.6, 0.9):
        with pytest.raises(KeyboardInterrupt):
            log_probabilities(checkpoint, SEQUENCES, path, progress=Interrupter(share))
        assert files_in(tmp_path) == ["kept.state", "whole"]
    kept = log_probabilities(checkpoint, SEQUENCES, path)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(kept, whole, strict=True))
    assert files_in(tmp_path) == ["kept", "whole"]


def test_what_cannot_be_written_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        log_probabilities(checkpoint, SEQUENCES, tmp_path / "folder")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="Not enough disk space"):
        log_probabilities(checkpoint, SEQUENCES, tmp_path / "kept")


def test_a_file_of_something_else_is_no_log_probabilities(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError):
        LogProbabilities(tmp_path / "kept")


KILLED = """
import os, sys
from pathlib import Path
from convert.source.checkpoint import open_checkpoint
from convert.reference.log_probabilities import log_probabilities

def progress(done, total):
    if done > 0.6 * total:
        os._exit(9)

log_probabilities(open_checkpoint(Path(sys.argv[1])), eval(sys.argv[2]), Path(sys.argv[3]), progress=progress)
"""


def test_a_killed_process_leaves_a_state_and_no_result(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint.folder), str(SEQUENCES), str(path)], cwd=ROOT)
    assert killed.returncode == 9
    assert files_in(tmp_path) == ["kept.partial", "kept.state"]

    calls: list[tuple[int, int]] = []
    log_probabilities(checkpoint, SEQUENCES, path, progress=lambda *call: calls.append(call))
    assert len(calls) == 3 * len(SEQUENCES)  # two layers and the head
    assert files_in(tmp_path) == ["kept"]


def test_no_sequences_have_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert len(log_probabilities(checkpoint, [], tmp_path / "kept")) == 0
