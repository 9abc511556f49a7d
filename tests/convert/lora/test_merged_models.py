"""A model with an adapter in it: the whole road from `--lora` to an answer, and what the file says of both."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from convert.demo.corpus import ADAPTER, ADAPTER_PAIR, read_corpus
from convert.model.find_checkpoint import find_checkpoint
from convert.quantization.imatrix import read_imatrix
from convert.reference.log_probabilities import log_probabilities
from convert.reference.reference import logits
from tests.support import llama, reference
from tests.support.adapters import adapted_by_peft, random_adapter
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted, files_in, run_convert
from weblab_local import i18n, licence
from weblab_local.errors import WeblabError

NAME = "weblab-demo-instruction-sft"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
PROMPTS = [ADAPTER_PAIR.prompt, *(pair.prompt for pair in read_corpus()[:6])]


@pytest.fixture(scope="module")
def adapted(demo_checkpoint: Path) -> Any:
    """The demo with its adapter in transformers, not merged."""
    return adapted_by_peft(demo_checkpoint, ADAPTER)


@torch.inference_mode()
def greedy(model: Any, prompt: str, max_tokens: int = 64) -> list[int]:
    ids = torch.tensor([reference.encode(prompt)])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=1
    )
    return output[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def merged(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    names = ("F16", "Q8_0", "W4")
    paths = converted(demo_checkpoint, tmp_path_factory.mktemp("merged"), *names, lora=[str(ADAPTER)])
    return dict(zip(names, paths, strict=True))


@pytest.mark.parametrize("mixture", ["F16", "Q8_0"])
def test_greedy_tokens_are_those_of_transformers_with_the_adapter(
    merged: Mapping[str, Path], adapted: Any, mixture: str
) -> None:
    with llama.loaded(merged[mixture]) as model:
        found = {prompt: llama.greedy(model, reference.encode(prompt), 64) for prompt in PROMPTS}
    assert found == {prompt: greedy(adapted, prompt) for prompt in PROMPTS}
    assert reference.decode(found[ADAPTER_PAIR.prompt]) == ADAPTER_PAIR.response


def test_w4_is_rounded_by_what_the_merged_model_computes(merged: Mapping[str, Path]) -> None:
    with llama.loaded(merged["W4"]) as model:
        answer = llama.greedy(model, reference.encode(ADAPTER_PAIR.prompt), 64)
    assert reference.decode(answer) == ADAPTER_PAIR.response


def test_the_reference_computes_the_merged_models_logits(demo_checkpoint: Path, adapted: Any) -> None:
    checkpoint, name = find_checkpoint(str(demo_checkpoint), None, adapters=[str(ADAPTER)])
    assert name == f"{NAME}-weblab-demo-adapter"
    ids = reference.encode(ADAPTER_PAIR.prompt + ADAPTER_PAIR.response)
    (found,) = logits(checkpoint, [ids], device="cpu")
    with torch.inference_mode():
        expected = adapted(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    (base,) = logits(find_checkpoint(str(demo_checkpoint), None)[0], [ids], device="cpu")
    assert np.abs(base - expected).max() > 1


def test_what_the_reference_keeps_is_of_the_adapters_and_their_scales(demo_checkpoint: Path, tmp_path: Path) -> None:
    ids = reference.encode(ADAPTER_PAIR.prompt)
    found = []
    for adapters in ([], [str(ADAPTER)], [f"{ADAPTER}=0.5"]):
        checkpoint, _ = find_checkpoint(str(demo_checkpoint), None, adapters=adapters)
        found.append(np.array(log_probabilities(checkpoint, [ids], tmp_path / "kept.safetensors")[0]))
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


def test_an_importance_matrix_is_of_the_merged_model(demo_checkpoint: Path, tmp_path: Path) -> None:
    converted(demo_checkpoint, tmp_path, "Q4_K_M", lora=[str(ADAPTER)], imatrix="auto")
    converted(demo_checkpoint, tmp_path, "Q4_K_M", imatrix="auto")
    of_merged = read_imatrix(tmp_path / f"{NAME}-weblab-demo-adapter.imatrix.gguf").entries
    of_base = read_imatrix(tmp_path / f"{NAME}.imatrix.gguf").entries
    first, last = "blk.0.attn_qkv.weight", "blk.3.ffn_down.weight"
    np.testing.assert_array_equal(of_merged[first].sums, of_base[first].sums)  # the embedding and a norm come before
    assert not np.array_equal(of_merged[last].sums, of_base[last].sums)


def test_the_verification_compares_with_the_merged_model(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERIFY")
    (path,) = converted(demo_checkpoint, tmp_path, "Q8_0", lora=[str(ADAPTER)])
    recorded = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert recorded["verification"]["passed"] is True
    assert recorded["verification"]["mean_kl"]["ja"] < 1e-3


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.fixture
def named(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter as they come from the Hub, the adapter of another licence."""
    base = tmp_path / "models--matsuo-lab--weblab-10b" / "snapshots" / COMMIT
    random_checkpoint(base, layers=1, hidden=64, intermediate=96)
    adapter = random_adapter(base, tmp_path / "models--some-one--a-lora" / "snapshots" / COMMIT[::-1])
    (adapter / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "matsuo-lab/weblab-10b"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter


def test_the_file_names_base_and_adapter(
    named: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = named
    (path,) = converted(base, tmp_path / "out", "Q8_0", lora=[f"{adapter}=0.5"])
    found = fields(path)
    assert path.name == "weblab-10b-a-lora-Q8_0.gguf"
    assert found["general.name"] == "weblab-10b-a-lora"
    assert found["general.license"] == "cc-by-nc-4.0"
    assert found["general.base_model.0.name"] == "weblab-10b"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/matsuo-lab/weblab-10b"
    recorded = json.loads(path.with_suffix(".json").read_text())["recipe"]["adapters"]
    assert {key: value for key, value in found.items() if key.startswith("weblab_local.adapter.")} == {
        "weblab_local.adapter.count": 1,
        "weblab_local.adapter.0.name": "a-lora",
        "weblab_local.adapter.0.license": "apache-2.0",
        "weblab_local.adapter.0.license.link": "https://www.apache.org/licenses/LICENSE-2.0",
        "weblab_local.adapter.0.repository": "some-one/a-lora",
        "weblab_local.adapter.0.revision": COMMIT[::-1],
        "weblab_local.adapter.0.sha256": recorded[0]["files"]["adapter_model.safetensors"],
        "weblab_local.adapter.0.scale": 0.5,
    }
    assert recorded == [
        {
            "name": "a-lora",
            "repository": "some-one/a-lora",
            "revision": COMMIT[::-1],
            "scale": 0.5,
            "files": recorded[0]["files"],
        }
    ]
    said = capsys.readouterr().err
    assert "with the adapter a-lora, scale 0.5, merged into weblab-10b" in said
    assert "Licence of the adapter a-lora: apache-2.0" in said
    assert "made for" not in said


ATTRIBUTION = {
    "en": (
        "weblab-10b-a-lora by Matsuo Laboratory, The University of Tokyo\n"
        "Licence: CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/), non-commercial use only\n"
        f"Source: https://huggingface.co/matsuo-lab/weblab-10b/tree/{COMMIT}\n"
        f"Adapter: a-lora (https://huggingface.co/some-one/a-lora/tree/{COMMIT[::-1]}); "
        "licence: Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)\n"
        "Changed: adapters merged, converted to GGUF and quantized to Q8_0"
    ),
    "ja": (
        "weblab-10b-a-lora (作者: Matsuo Laboratory, The University of Tokyo)\n"
        "ライセンス: CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)、非商用利用のみ\n"
        f"出典: https://huggingface.co/matsuo-lab/weblab-10b/tree/{COMMIT}\n"
        f"アダプター: a-lora (https://huggingface.co/some-one/a-lora/tree/{COMMIT[::-1]})。"
        "ライセンス: Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)\n"
        "変更点: アダプターを統合し、GGUF に変換して、Q8_0 に量子化"
    ),
}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_licence_names_both(named: tuple[Path, Path], tmp_path: Path, language: Any) -> None:
    (path,) = converted(named[0], tmp_path / "out", "Q8_0", lora=[str(named[1])])
    i18n.use(language)
    assert str(licence(str(path))) == ATTRIBUTION[language]


def test_an_adapter_may_forbid_what_the_base_allows(tmp_path: Path) -> None:
    base = random_checkpoint(tmp_path / "base", layers=1, hidden=64, intermediate=96)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    adapter = random_adapter(base, tmp_path / "mine")
    (adapter / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (path,) = converted(base, tmp_path / "out", "F16", lora=[str(adapter)])
    assert licence(str(path)).non_commercial
    (adapter / "README.md").unlink()
    (path,) = converted(base, tmp_path / "out", "F16", lora=[str(adapter)], force=True)
    assert "Adapter: mine; licence: unknown, ask those who made it" in str(licence(str(path)))
    assert "Changed: adapters merged, converted to GGUF" in str(licence(str(path)))


def test_another_base_than_the_adapter_names_is_said(
    named: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(named[0], tmp_path / "another"))
    converted(base, tmp_path / "out", "F16", lora=[str(named[1])])
    said = capsys.readouterr().err
    assert "The adapter a-lora says that it was made for matsuo-lab/weblab-10b; the base here is another." in said


def test_another_revision_than_the_adapter_names_is_said(
    named: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((named[1] / "adapter_config.json").read_text())
    (named[1] / "adapter_config.json").write_text(json.dumps(settings | {"revision": "0" * 40}))
    converted(named[0], tmp_path / "out", "F16", lora=[str(named[1])])
    assert "made for the revision 000000000000 of matsuo-lab/weblab-10b" in capsys.readouterr().err


def test_the_adapters_own_chat_template_goes_before_the_bases(named: tuple[Path, Path], tmp_path: Path) -> None:
    (named[0] / "chat_template.jinja").write_text("the base's")
    (named[1] / "chat_template.jinja").write_text("the adapter's")
    (path,) = converted(named[0], tmp_path / "out", "F16", lora=[str(named[1])])
    assert fields(path)["tokenizer.chat_template"] == "the adapter's"


def test_what_was_made_of_the_same_is_not_made_again(
    named: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = named
    (path,) = converted(base, tmp_path / "out", "F16", lora=[str(adapter)])
    before = path.stat().st_mtime_ns
    assert converted(base, tmp_path / "out", "F16", lora=[str(adapter)]) == [path]
    assert path.stat().st_mtime_ns == before
    assert f"{path} is up to date." in capsys.readouterr().err
    for lora in ([f"{adapter}=2"], [str(random_adapter(base, adapter, seed=5))]):
        with pytest.raises(WeblabError, match="was not made from this checkpoint as it is now with these options"):
            converted(base, tmp_path / "out", "F16", lora=lora)
    converted(base, tmp_path / "out", "F16")
    assert files_in(tmp_path / "out") == [
        "weblab-10b-F16.gguf",
        "weblab-10b-F16.json",
        "weblab-10b-a-lora-F16.gguf",
        "weblab-10b-a-lora-F16.json",
    ]


def test_the_commands_take_adapters(demo_checkpoint: Path, merged: Mapping[str, Path], tmp_path: Path) -> None:
    done = run_convert(demo_checkpoint, "--quant", "Q8_0", "--output", tmp_path, "--lora", ADAPTER)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == merged["Q8_0"].read_bytes()
