"""The small files are looked at, and the disk, before a weight is fetched; a refused token is said to be one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.convert.source.download.support import (
    CACHE_AND_LOW_DISK,
    INDEX,
    MIB,
    TINY,
    Conversion,
    Hub,
    User,
    gguf_of,
    tensors,
)
from tests.support.checkpoints import random_checkpoint
from tests.support.hub_server import environment

FREE = "shutil.disk_usage = lambda path: types.SimpleNamespace(free={})"


def edit(folder: Path, **config: object) -> None:
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))


def into_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another architecture": (
        lambda folder: edit(folder, architectures=["LlamaForCausalLM"], model_type="llama"),
        "is a LlamaForCausalLM, not a GPTNeoXForCausalLM",
    ),
    "SentencePiece": (into_sentencepiece, "SentencePiece model (spiece.model)"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "quantized": (
        lambda folder: edit(folder, quantization_config={"quant_method": "gptq"}, _name_or_path="org/original"),
        "quantized already by GPTQ",
    ),
    "another activation": (lambda folder: edit(folder, hidden_act="relu"), "hidden_act"),
    "a tokenizer of another model": (lambda folder: edit(folder, vocab_size=300), "the embedding has 300 rows"),
}


@CACHE_AND_LOW_DISK
@pytest.mark.parametrize("form", WRONG)
def test_a_model_that_cannot_be_converted_costs_no_weight(
    hub: Hub, user: User, single: Path, tmp_path: Path, option: list[str], form: str
) -> None:
    spoil, said = WRONG[form]
    folder = Path(shutil.copytree(single, tmp_path / "published"))
    spoil(folder)
    hub.add(TINY, folder)
    assert said in user.is_told(hub, *option)
    assert hub.fetched_shards == []
    assert list(user.output.glob(".download-*")) == []


@pytest.mark.parametrize("command", ["convert.verify", "convert.calibrate"])
def test_neither_does_it_for_the_other_commands(
    hub: Hub, user: User, single: Path, tmp_path: Path, command: str
) -> None:
    folder = Path(shutil.copytree(single, tmp_path / "published"))
    edit(folder, architectures=["LlamaForCausalLM"])
    hub.add(TINY, folder)
    done = subprocess.run(
        [sys.executable, "-m", command, TINY], env=environment(hub, user.home), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "is a LlamaForCausalLM" in done.stderr
    assert hub.fetched_shards == []


def test_an_index_of_another_model_costs_no_weight(hub: Hub, user: User, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "published"))
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["gpt_neox.final_layer_norm.bias"]
    (folder / INDEX).write_text(json.dumps(index))
    hub.add(TINY, folder)
    assert "lacks 1 tensors: gpt_neox.final_layer_norm.bias" in user.is_told(hub)
    assert hub.fetched_shards == []


def test_an_adapter_on_the_hub_is_said_to_be_one_with_its_base(hub: Hub, user: User, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(2 * MIB))
    hub.add("org/adapter", folder)
    message = user.is_told(hub, source="org/adapter")
    assert "org/adapter is an adapter (LORA) of org/base" in message
    assert "python -m convert org/base --lora org/adapter" in message
    assert hub.fetched == ["adapter_config.json"]


def test_a_single_file_on_the_hub_goes_before_an_index(hub: Hub, user: User, tiny: Path, tmp_path: Path) -> None:
    newer = random_checkpoint(tmp_path / "newer" / "tiny", vocab_size=1200, dtype="float32", seed=3)
    folder = Path(shutil.copytree(tiny, tmp_path / "published"))
    shutil.copy(newer / "model.safetensors", folder)
    hub.add(TINY, folder)
    done = user.convert(hub)
    assert done.returncode == 0, done.stderr
    assert f"{INDEX}, which names other shards, is left aside." in done.stderr
    assert hub.fetched_shards == ["model.safetensors"]
    assert tensors(Path(done.stdout.strip())) == tensors(gguf_of(newer, tmp_path / "expected"))


def test_a_tokenizer_of_the_hub_in_two_files(hub: Hub, user: User, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "published"))
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    runs = {entry["content"]: entry["id"] for entry in content["added_tokens"] if not entry["special"]}
    vocab = {token: i for token, i in content["model"]["vocab"].items() if token not in runs}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(runs), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    hub.add(TINY, folder)
    made = user.gets(hub)
    expected = gguf_of(tiny, tmp_path / "expected")
    assert tensors(made) == tensors(expected)
    shutil.rmtree(user.output)
    assert tensors(user.gets(hub, HF_HUB_OFFLINE="1")) == tensors(expected)


def test_a_tokenizer_on_the_disk_stands_in_for_the_hubs(hub: Hub, user: User, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "published"))
    (tmp_path / "base").mkdir()
    (folder / "tokenizer.json").rename(tmp_path / "base" / "tokenizer.json")
    hub.add(TINY, folder)
    made = user.gets(hub, "--tokenizer", str(tmp_path / "base"))
    assert tensors(made) == tensors(gguf_of(tiny, tmp_path / "expected"))
    shutil.rmtree(user.output)
    user.gets(hub, "--tokenizer", str(tmp_path / "base"), HF_HUB_OFFLINE="1")


# --- the disk ---------------------------------------------------------------------------------------------------------


def sizes(folder: Path, output: Path) -> tuple[int, int]:
    """Bytes of the download and of the result."""
    of_folder = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    return of_folder, gguf_of(folder, output).stat().st_size


def test_the_disk_has_to_hold_the_download_and_the_result_before_a_shard_is_fetched(
    hub: Hub, user: User, single: Path, tmp_path: Path
) -> None:
    download, result = sizes(single, tmp_path / "expected")
    hub.add(TINY, single)
    message = user.is_told(hub, before=FREE.format(download + result - MIB))
    assert re.search(
        r"Not enough disk space in .+: [\d.]+ MB needed \([\d.]+ MB to download, the rest for the result\), "
        r"[\d.]+ MB free\.\n",
        message,
    )
    assert hub.fetched_shards == []
    user.gets(hub, before=FREE.format(download + result + MIB))


def test_each_disk_is_asked_for_its_own_part_where_there_are_two(
    hub: Hub, user: User, single: Path, tmp_path: Path
) -> None:
    """The cache's disk has room for the download alone, and the result's for the result alone."""
    download, result = sizes(single, tmp_path / "expected")
    hub.add(TINY, single)
    two = (
        "shutil.disk_usage = lambda path: types.SimpleNamespace("
        f"free={{}} if {str(user.home)!r} in str(path) else {{}});"
        "import convert.source.download as d; d.shares_disk_with_cache = lambda folder: False"
    )
    user.home.mkdir(parents=True)
    message = user.is_told(hub, before=two.format(download + MIB, result - 1000))
    assert str(user.output) in message
    assert hub.fetched_shards == []
    message = user.is_told(hub, before=two.format(download - MIB, result + MIB))
    assert "to download" in message
    assert hub.fetched == [name for name in hub.fetched if not name.endswith(".safetensors")]
    user.gets(hub, before=two.format(download + MIB, result + MIB))


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["", "RepoNotFound"], ids=["as a failure", "as a repository that is not there"])
@pytest.mark.parametrize("cached", [False, True], ids=["not cached", "cached"])
def test_a_wrong_token_on_a_public_model_is_said_to_be_that(
    converted: Conversion, hub: Hub, tiny: Path, tmp_path: Path, cached: bool, code: str
) -> None:
    user = User(converted.copy(tmp_path).home if cached else tmp_path / "home", tmp_path / "other")
    hub.add(TINY, tiny)
    hub.valid_tokens, hub.code_of_wrong_tokens = {"hf_mine"}, code
    message = user.is_told(hub, HF_TOKEN="hf_expired")
    assert message == (
        "convert: The Hub refuses the token in HF_TOKEN: it has expired or is wrong. "
        f"{TINY} is public: this model needs no token.\nUnset HF_TOKEN and run this again.\n"
    )
    user.gets(hub, HF_TOKEN="hf_mine")


def test_a_wrong_token_that_was_saved_is_said_to_be_that(hub: Hub, user: User, tiny: Path) -> None:
    hub.add(TINY, tiny)
    hub.valid_tokens = set()
    user.home.mkdir()
    (user.home / "token").write_text("hf_expired")
    message = user.is_told(hub)
    assert "the token that `hf auth login` saved" in message
    assert "Type `hf auth logout` and run this again." in message


@pytest.mark.parametrize("repository", ["org/gated", "org/private"])
def test_a_wrong_token_on_what_is_not_public_asks_for_another(
    hub: Hub, user: User, tiny: Path, repository: str
) -> None:
    if repository == "org/gated":
        hub.add(repository, tiny, gated=True)
    hub.valid_tokens = set()
    message = user.is_told(hub, source=repository, HF_TOKEN="hf_expired")
    assert "The Hub refuses the token in HF_TOKEN" in message
    assert "needs no token" not in message
    assert "put it into HF_TOKEN" in message
