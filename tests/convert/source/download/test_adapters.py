"""`--lora owner/name`: an adapter from the Hub, fetched into its cache and merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.convert.source.download.support import CACHE_AND_LOW_DISK, TINY, Hub, User, metadata, tensors
from tests.support.adapters import random_adapter
from tests.support.conversions import converted

ADAPTER = "someone/a-lora"


@pytest.fixture(scope="session")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_adapter(tiny, tmp_path_factory.mktemp("published") / "a-lora")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "optimizer.pt").write_bytes(b"not wanted")
    return folder


@CACHE_AND_LOW_DISK
def test_base_and_adapter_from_the_hub(
    hub: Hub, user: User, tiny: Path, adapter: Path, tmp_path: Path, option: list[str]
) -> None:
    hub.add(TINY, tiny)
    commit = hub.add(ADAPTER, adapter).commit
    path = user.gets(hub, "--lora", f"{ADAPTER}=0.5", *option)
    assert path.name == "tiny-a-lora-Q8_0.gguf"
    assert tensors(path) == tensors(converted(tiny, tmp_path / "expected", "Q8_0", lora=[f"{adapter}=0.5"])[0])
    assert metadata(path, "weblab_local.adapter.0.repository") == ADAPTER
    assert metadata(path, "weblab_local.adapter.0.revision") == commit
    assert metadata(path, "weblab_local.adapter.0.license") == "mit"
    assert "optimizer.pt" not in hub.fetched


def test_without_the_hub_it_comes_from_the_cache(hub: Hub, user: User, tiny: Path, adapter: Path) -> None:
    hub.add(TINY, tiny)
    hub.add(ADAPTER, adapter)
    path = user.gets(hub, "--lora", ADAPTER)
    before = tensors(path)
    again = user.gets(hub, "--lora", ADAPTER, "--force", HF_HUB_OFFLINE="1")
    assert (again, tensors(again)) == (path, before)


def test_an_adapter_that_is_not_there_costs_no_weight(hub: Hub, user: User, tiny: Path) -> None:
    hub.add(TINY, tiny)
    assert f"There is no repository {ADAPTER} on the Hub" in user.is_told(hub, "--lora", ADAPTER)
    hub.add(ADAPTER, tiny)
    assert f"{ADAPTER} is no adapter: it has no adapter_config.json" in user.is_told(hub, "--lora", ADAPTER)
    assert hub.fetched_shards == []


def test_an_adapter_of_another_model_costs_no_weight(
    hub: Hub, user: User, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    hub.add(TINY, other)
    hub.add(ADAPTER, adapter)
    assert "calls for 4 x 128" in user.is_told(hub, "--lora", ADAPTER)
    assert hub.fetched_shards == ["adapter_model.safetensors"]
