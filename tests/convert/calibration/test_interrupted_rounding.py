"""W4's rounding goes on where it was interrupted or killed, and gives the same file."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from convert.calibration.two_passes import TwoPasses
from convert.errors import OutputError
from tests.support.conversions import converted, files_in, start_convert

NAME = "weblab-demo-instruction-sft-W4"
DONE = [f"{NAME}.gguf", f"{NAME}.json"]
INTERRUPTED = [f"{NAME}.gguf.partial", f"{NAME}.gguf.rounding"]


class Rounded:
    """Notes the layers that are rounded, and interrupts at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers: list[int] = []
        self.ends_at: int | None = None
        self.error: type[BaseException] = KeyboardInterrupt
        original = TwoPasses._layer

        def layer(passes: TwoPasses, number: int, *rest: object) -> None:
            if number == self.ends_at:
                raise self.error
            self.layers.append(number)
            original(passes, number, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(TwoPasses, "_layer", layer)


@pytest.fixture(scope="module")
def whole(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """W4 of the demo, made without an interruption."""
    (path,) = converted(demo_checkpoint, tmp_path_factory.mktemp("whole"), "W4")
    return path.read_bytes()


def interrupted(checkpoint: Path, folder: Path, rounded: Rounded, at: int, *quants: str) -> None:
    rounded.ends_at = at
    with pytest.raises(KeyboardInterrupt):
        converted(checkpoint, folder, *(quants or ("W4",)))
    rounded.ends_at = None
    rounded.layers.clear()


def test_it_goes_on_with_the_layer_it_had_reached(
    demo_checkpoint: Path,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rounded = Rounded(monkeypatch)
    interrupted(demo_checkpoint, tmp_path, rounded, 1)
    assert files_in(tmp_path) == INTERRUPTED
    interrupted(demo_checkpoint, tmp_path, rounded, 3)
    capsys.readouterr()
    (path,) = converted(demo_checkpoint, tmp_path, "W4")
    assert rounded.layers == [3]
    assert "goes on after the 3 layers" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert files_in(tmp_path) == DONE


def test_before_the_first_layer_nothing_is_left(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(demo_checkpoint, tmp_path, Rounded(monkeypatch), 0)
    assert files_in(tmp_path) == []


def test_another_output_beside_it_is_made_anew(
    demo_checkpoint: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = Rounded(monkeypatch)
    interrupted(demo_checkpoint, tmp_path, rounded, 2, "Q8_0", "W4")
    assert files_in(tmp_path) == INTERRUPTED
    _other, path = converted(demo_checkpoint, tmp_path, "Q8_0", "W4")
    assert rounded.layers == [2, 3]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("spoiled", INTERRUPTED)
def test_what_is_damaged_or_gone_is_made_anew(
    spoiled: str, demo_checkpoint: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = Rounded(monkeypatch)
    interrupted(demo_checkpoint, tmp_path, rounded, 2)
    path = tmp_path / spoiled
    if path.suffix == ".partial":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1000])
    (path,) = converted(demo_checkpoint, tmp_path, "W4")
    assert rounded.layers == [0, 1, 2, 3]
    assert path.read_bytes() == whole


def test_with_other_options_it_begins_anew(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = Rounded(monkeypatch)
    interrupted(demo_checkpoint, tmp_path, rounded, 2)
    converted(demo_checkpoint, tmp_path, "W4", chat_template="none")
    assert rounded.layers == [0, 1, 2, 3]
    assert files_in(tmp_path) == DONE


def test_an_error_leaves_nothing(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = Rounded(monkeypatch)
    rounded.ends_at, rounded.error = 2, OSError
    with pytest.raises(OutputError, match="Nothing was left behind"):
        converted(demo_checkpoint, tmp_path, "W4")
    assert files_in(tmp_path) == []


def test_after_a_kill_it_goes_on_too(
    demo_checkpoint: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_convert(demo_checkpoint, "--output", tmp_path, "--quant", "W4") as process:
        while not (tmp_path / INTERRUPTED[1]).exists():
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"It ended with {process.wait(timeout=0.01)}")
        process.kill()
        process.communicate()
    assert set(INTERRUPTED) <= set(files_in(tmp_path))
    rounded = Rounded(monkeypatch)
    (path,) = converted(demo_checkpoint, tmp_path, "W4")
    assert 0 not in rounded.layers
    assert path.read_bytes() == whole
    assert files_in(tmp_path) == DONE
