"""The manifest says where a file came from, so that anybody can check it."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from tests.convert.writing.output.support import COMMIT, manifest_of, sha256
from tests.support.conversions import converted


def test_the_manifest_lets_anybody_check_the_file_and_its_source(checkpoint: Path, folder: Path) -> None:
    (path,) = converted(checkpoint, folder, "Q4_K_M")

    manifest = manifest_of(path)

    assert manifest["output"] == {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
    assert manifest["recipe"] == {"mixture": "Q4_K_M", "chat_template": "auto"}
    shards = list(checkpoint.glob("*.safetensors"))
    assert len(shards) > 1
    assert {shard["name"]: (shard["sha256"], shard["size"]) for shard in manifest["source"]["shards"]} == {
        shard.name: (sha256(shard), shard.stat().st_size) for shard in shards
    }
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "README.md")
    assert manifest["source"]["files"] == {name: sha256(checkpoint / name) for name in names}
    assert (manifest["source"]["repository"], manifest["source"]["revision"]) == ("", "")


def test_the_manifest_names_the_tools_and_their_versions(checkpoint: Path, folder: Path) -> None:
    tools = manifest_of(converted(checkpoint, folder, "Q8_0")[0])["tools"]

    assert tools["python"] == platform.python_version()
    assert tools["llama-cpp-python"] == version("llama-cpp-python")
    assert tools["gguf"] == version("gguf")
    assert tools["numpy"] == version("numpy")
    assert tools["torch"] == torch.__version__


def test_the_manifest_names_the_commit_of_a_snapshot_in_the_cache_of_the_hub(
    original: Path, folder: Path, tmp_path: Path
) -> None:
    snapshot = shutil.copytree(original, tmp_path / "hub" / "models--an-owner--a-model" / "snapshots" / COMMIT)

    (path,) = converted(snapshot, folder, "Q8_0")

    source = manifest_of(path)["source"]
    assert path.name == "a-model-Q8_0.gguf"
    assert (source["repository"], source["revision"]) == ("an-owner/a-model", COMMIT)


def test_japanese_names_stand_in_the_manifest_as_they_are(original: Path, folder: Path, tmp_path: Path) -> None:
    japanese = shutil.copytree(original, tmp_path / "言語モデル")

    (path,) = converted(japanese, folder, "Q8_0")

    assert path.name == "言語モデル-Q8_0.gguf"
    assert manifest_of(path)["output"]["name"] == path.name
    assert "言語モデル" in path.with_suffix(".json").read_text(encoding="utf-8")
