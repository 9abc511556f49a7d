"""`--low-disk`: one shard at a time, in a folder of its own, resumed across runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import HfFileMetadata
from huggingface_hub.utils import XetFileData  # type: ignore[attr-defined]  # public, but loaded lazily
from safetensors.torch import load_file, save_file

from convert.source import download, low_disk
from tests.convert.source.download.support import (
    CHUNK,
    MIB,
    OUTPUT,
    TINY,
    WITHOUT_PAUSES,
    Conversion,
    Hub,
    User,
    gguf_of,
    hashes,
    shards,
    source,
    tensors,
)
from tests.support.checkpoints import random_checkpoint
from tests.support.systems import on_linux, on_posix

AS_ON_WINDOWS = "from tests.support.windows import refuse_for_mapped_files; refuse_for_mapped_files()"


def test_low_disk_holds_one_shard_at_a_time_and_gives_the_same_file(
    hub: Hub, user: User, tiny: Path, converted: Conversion
) -> None:
    hub.add(TINY, tiny)
    held: dict[str, list[str]] = {}
    hub.watch = lambda name: held.update({name: user.low_disk_folder})
    made = user.gets(hub, "--low-disk")
    assert {shard: held[shard] for shard in shards(tiny)} == {shard: [f"{shard}.part"] for shard in shards(tiny)}
    assert list(user.output.glob(".download-*")) == []
    assert user.cache == {}
    assert made.read_bytes() == converted.gguf.read_bytes()
    assert source(made)["shards"] == hashes(tiny)


@on_linux
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_low_disk_has_no_shard_in_memory_any_more_when_it_deletes_it(
    hub: Hub, user: User, tmp_path: Path, form: Literal["safetensors", "bin"]
) -> None:
    folder = random_checkpoint(tmp_path / "tiny", vocab_size=1200, shards=3, form=form)
    hub.add(TINY, folder)
    made = user.gets(hub, "--low-disk", before=AS_ON_WINDOWS)
    assert tensors(made) == tensors(gguf_of(folder, tmp_path / "expected"))
    assert list(user.output.glob(".download-*")) == []


@on_linux
def test_low_disk_has_no_shard_in_memory_any_more_when_it_fails(hub: Hub, user: User, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "tiny", vocab_size=1200, shards=3)
    last = folder / shards(folder)[-1]
    save_file({name: tensor * float("nan") for name, tensor in load_file(last).items()}, last)
    hub.add(TINY, folder)
    assert "holds NaN" in user.is_told(hub, "--low-disk", before=AS_ON_WINDOWS)
    assert list(user.output.glob(".download-*")) == []


def test_low_disk_leaves_nothing_to_compare_with_and_says_so(hub: Hub, user: User, tiny: Path) -> None:
    hub.add(TINY, tiny)
    done = user.convert(hub, "--low-disk", VERIFY="")
    assert done.returncode == 0, done.stderr
    assert "The result is not compared with the checkpoint: --low-disk keeps none of it." in done.stderr
    assert json.loads((user.output / OUTPUT).with_suffix(".json").read_text())["verification"] is None


def test_low_disk_takes_what_is_in_the_cache_and_leaves_it_there(
    converted: Conversion, tiny: Path, tmp_path: Path
) -> None:
    user = User(tmp_path / "home", tmp_path / "models")
    shutil.copytree(converted.user.home, user.home, symlinks=True)
    lost = shards(tiny)[1]
    (user.snapshot(converted.commit) / lost).unlink()
    before = user.cache
    converted.hub.requests.clear()
    assert user.gets(converted.hub, "--low-disk").read_bytes() == converted.gguf.read_bytes()
    assert converted.hub.fetched_shards == [lost]
    assert user.cache == before


@on_posix
@pytest.mark.parametrize(("signal", "code", "form"), [("SIGINT", 130, "single"), ("SIGKILL", -9, "large")])
def test_low_disk_goes_on_with_the_first_shard_after_it_was_cut_off(
    hub: Hub, user: User, request: pytest.FixtureRequest, signal: str, code: int, form: str
) -> None:
    folder: Path = request.getfixturevalue(form)
    hub.add(TINY, folder)
    first, *rest = shards(folder)
    hub.cut_after = CHUNK + MIB
    said = user.is_cut_off(hub, "--low-disk", by=signal, code=code)
    assert ("the same command goes on from there" in said) == (signal == "SIGINT")
    hub.requests.clear()
    made = user.gets(hub, "--low-disk")
    assert hub.ranges(first) == [f"bytes={CHUNK}-"]
    assert hub.fetched_shards == [first, *rest]
    assert list(user.output.glob(".download-*")) == []
    assert source(made)["shards"] == hashes(folder)


@on_posix
def test_low_disk_leaves_nothing_when_it_is_interrupted_at_a_later_shard(hub: Hub, user: User, large: Path) -> None:
    hub.add(TINY, large)
    hub.cut_at(shards(large)[1])
    user.is_cut_off(hub, "--low-disk", by="SIGTERM", code=130)
    assert user.has == {}
    assert list(user.output.glob(".download-*")) == []


@on_posix
def test_low_disk_makes_room_for_the_first_shard_after_it_was_killed_at_a_later_one(
    hub: Hub, user: User, large: Path
) -> None:
    hub.add(TINY, large)
    first, second, *rest = shards(large)
    hub.cut_at(second)
    user.is_cut_off(hub, "--low-disk", by="SIGKILL", code=-9)
    assert user.low_disk_folder == [f"{second}.part"]
    hub.requests.clear()
    held: dict[str, list[str]] = {}
    hub.watch = lambda name: held.update({name: user.low_disk_folder})
    user.gets(hub, "--low-disk")
    assert held[first] == [f"{first}.part"]
    assert hub.fetched_shards == [first, second, *rest]
    assert {*user.has} == {OUTPUT, "tiny-Q8_0.json"}
    assert list(user.output.glob(".download-*")) == []


def test_low_disk_explains_a_connection_that_does_not_come_back_and_goes_on_when_it_does(
    hub: Hub, user: User, large: Path
) -> None:
    hub.add(TINY, large)
    first, *rest = shards(large)
    hub.watch = lambda name: hub.hang_up(after=CHUNK + MIB) if name == first else None
    message = user.is_told(hub, "--low-disk", before=WITHOUT_PAUSES)
    assert f"Downloading {TINY} failed: " in message
    assert "Check the network and the free disk space, then run this again" in message
    with Hub() as back:
        back.add(TINY, large)
        user.gets(back, "--low-disk")
        assert back.fetched_shards == [first, *rest]
        assert back.ranges(first) == [f"bytes={CHUNK}-"]


def test_low_disk_does_not_use_what_an_earlier_run_left_damaged(hub: Hub, user: User, single: Path) -> None:
    repo = hub.add(TINY, single)
    part = user.output / f".download-org--tiny-{repo.commit[:12]}" / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(5 * MIB))
    message = user.is_told(hub, "--low-disk")
    assert "model.safetensors arrived damaged: its SHA-256 is wrong.\nRun this again" in message
    assert not part.exists()
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(bytes((single / "model.safetensors").stat().st_size + 1))
    hub.requests.clear()
    user.gets(hub, "--low-disk")
    assert hub.ranges("model.safetensors") == [None]


def test_low_disk_leaves_what_is_stored_by_xet_to_huggingface_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, single: Path
) -> None:
    stored_by_xet = HfFileMetadata("c" * 40, "0" * 64, "", 1, xet_file_data=XetFileData("", ""))

    def fetch(_: str, name: str, *, local_dir: Path, **__: str) -> str:
        return str(shutil.copy(single / name, local_dir))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(low_disk, "get_hf_file_metadata", lambda _: stored_by_xet)
    for module in (download, low_disk):
        monkeypatch.setattr(module, "hf_hub_download", fetch)
    found = download.HubCheckpoint(TINY, "main", "c" * 40, {"config.json": 1, "model.safetensors": 1})
    with low_disk.LowDiskFolder(found, tmp_path, print) as folder:
        folder.path.mkdir()
        assert folder.open().shards == ["model.safetensors"]
