"""The GGUF says what it is: name, licence, makers, architecture, tokenizer and chat template."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import gguf
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from transformers import AutoConfig

from convert.errors import ConversionError
from convert.quantization.mixtures import MIXTURES
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
CARD = "---\nlicense: apache-2.0\nlanguage:\n- ja\n- en\nlibrary_name: transformers\n---\n# A model\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metadata") / "model"
    return random_checkpoint(folder, layers=1, hidden=64, intermediate=96, vocab_size=340)


def copy(original: Path, folder: Path, **files: object) -> Path:
    """The checkpoint in `folder`, with `files` (README_md="...") written to it; what is no text becomes JSON."""
    shutil.copytree(original, folder)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / ".".join(name.rsplit("_", 1))).write_text(text, encoding="utf-8")
    return folder


def edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def fields(path: Path, prefix: str = "") -> dict[str, Any]:
    """What gguf's own reader finds under `prefix`."""
    found = gguf.GGUFReader(path).fields
    return {name.removeprefix(prefix): field.contents() for name, field in found.items() if name.startswith(prefix)}


def general(source: Path, quant: str = "Q8_0") -> dict[str, Any]:
    return fields(converted(source, source.parent / "results", quant)[0], "general.")


def test_a_snapshot_of_the_hub_is_described_by_its_card_and_its_commit(original: Path, tmp_path: Path) -> None:
    snapshot = copy(original, tmp_path / "models--some-lab--a-model" / "snapshots" / COMMIT, README_md=CARD)

    (path,) = converted(snapshot, tmp_path, "Q4_K_M")

    assert path.name == "a-model-Q4_K_M.gguf"
    assert fields(path, "general.") == {
        "architecture": "gptneox",
        "type": "model",
        "name": "a-model",
        "size_label": "73K",
        "description": "a-model, converted to GGUF by weblab-local.",
        "organization": "some-lab",
        "license": "apache-2.0",
        "license.link": "https://www.apache.org/licenses/LICENSE-2.0",
        "languages": ["ja", "en"],
        "source.url": f"https://huggingface.co/some-lab/a-model/tree/{COMMIT}",
        "source.repo_url": "https://huggingface.co/some-lab/a-model",
        "source.huggingface.repository": "some-lab/a-model",
        "file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M,
        "quantization_version": gguf.GGML_QUANT_VERSION,
    }
    assert fields(path)["weblab_local.source.revision"] == COMMIT


def test_what_is_unknown_is_left_out(original: Path, tmp_path: Path) -> None:
    found = general(copy(original, tmp_path / "model"))

    assert found.keys() == {
        "architecture",
        "type",
        "name",
        "size_label",
        "description",
        "file_type",
        "quantization_version",
    }
    assert found["name"] == "model"


@pytest.mark.parametrize(
    ("card", "licence", "languages"),
    [
        ("---\nlicense: mit\nlanguage: ja\n---\n", "mit", ["ja"]),
        ("---\r\nlicense: mit\r\nlanguage:\r\n  - ja\r\n---\r\n", "mit", ["ja"]),
        ("---\nlicense: other\n---\n# A model\n", "other", None),
        ("---\nlicense:\nlanguage: []\n---\n", None, None),
        ("# A model without front matter\n\nlicense: mit\n", None, None),
        ("", None, None),
    ],
)
def test_licence_and_languages_are_those_of_the_front_matter(
    original: Path, tmp_path: Path, card: str, licence: str | None, languages: list[str] | None
) -> None:
    found = general(copy(original, tmp_path / "model", README_md=card))

    assert found.get("license") == licence
    assert found.get("license.link") == ("https://opensource.org/license/mit" if licence == "mit" else None)
    assert found.get("languages") == languages


@pytest.mark.parametrize(
    "card", [b"---\n- mit\n---\n", b"\xff\xfe\n", b"---\nlicense: [\n---\n"], ids=["a list", "no text", "no YAML"]
)
def test_a_damaged_card_is_an_error_that_names_it(original: Path, tmp_path: Path, card: bytes) -> None:
    folder = copy(original, tmp_path / "model")
    (folder / "README.md").write_bytes(card)

    with pytest.raises(ConversionError, match=r"The model card .*README\.md cannot be read: .*\nCorrect or remove"):
        converted(folder, tmp_path, "Q8_0")


@pytest.mark.parametrize("name", ["weblab-10b", "weblab-10b-instruction-sft"])
def test_weblab_has_its_licence_and_attribution_even_without_a_card(original: Path, tmp_path: Path, name: str) -> None:
    found = general(copy(original, tmp_path / name))

    assert found["name"] == name
    assert found["license"] == "cc-by-nc-4.0"
    assert found["license.link"] == "https://creativecommons.org/licenses/by-nc/4.0/"
    assert found["organization"] == "Matsuo Laboratory, The University of Tokyo"
    assert found["languages"] == ["ja", "en"]
    assert "Matsuo Laboratory" in found["description"]
    assert "non-commercial" in found["description"]


@pytest.mark.parametrize("quant", MIXTURES)
def test_the_file_type_is_llama_cpps_and_only_blocks_have_a_version(original: Path, tmp_path: Path, quant: str) -> None:
    found = general(copy(original, tmp_path / "model"), quant)

    assert gguf.LlamaFileType(found["file_type"]).name == ("ALL_F32" if quant == "F32" else f"MOSTLY_{quant}")
    assert ("quantization_version" in found) == (quant not in ("F32", "F16"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden": 96, "heads": 6, "layers": 3, "intermediate": 128, "rotary_pct": 0.5, "rotary_base": 25000.0},
        {"use_parallel_residual": False, "layer_norm_eps": 1e-6, "max_position_embeddings": 512, "vocab_size": 400},
        {"config_form": "new", "rotary_pct": 1.0},
    ],
    ids=str,
)
def test_the_hyperparameters_are_those_that_transformers_reads(tmp_path: Path, config: dict[str, Any]) -> None:
    shape: dict[str, Any] = {"layers": 1, "hidden": 64, "intermediate": 96} | config
    folder = random_checkpoint(tmp_path / "model", **shape)
    read = AutoConfig.from_pretrained(folder)

    found = fields(converted(folder, tmp_path, "Q8_0")[0], "gptneox.")

    assert found == {
        "vocab_size": read.vocab_size,
        "context_length": read.max_position_embeddings,
        "embedding_length": read.hidden_size,
        "block_count": read.num_hidden_layers,
        "feed_forward_length": read.intermediate_size,
        "attention.head_count": read.num_attention_heads,
        "attention.layer_norm_epsilon": pytest.approx(read.layer_norm_eps, rel=1e-6),
        "rope.dimension_count": read.rope_parameters["partial_rotary_factor"]
        * read.hidden_size
        / shape.get("heads", 2),
        "rope.freq_base": read.rope_parameters["rope_theta"],
        "use_parallel_residual": read.use_parallel_residual,
    }


@pytest.mark.parametrize("config_form", ["old", "new"])
def test_linear_rope_scaling_is_taken_over(tmp_path: Path, config_form: Literal["old", "new"]) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    folder = random_checkpoint(
        tmp_path / "model", layers=1, hidden=64, intermediate=96, config_form=config_form, rope_scaling=scaling
    )

    found = fields(converted(folder, tmp_path, "Q8_0")[0], "gptneox.rope.")

    assert (found["scaling.type"], found["scaling.factor"]) == ("linear", 4.0)


def test_the_tokenizer_is_that_of_tokenizers(original: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(original / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    ids = range(tokenizer.get_vocab_size())

    found = fields(converted(original, tmp_path, "Q8_0")[0], "tokenizer.ggml.")

    def kind(token_id: int) -> gguf.TokenType:
        if token_id not in added:
            return gguf.TokenType.NORMAL
        return gguf.TokenType.CONTROL if added[token_id].special else gguf.TokenType.USER_DEFINED

    assert found["model"] == "gpt2"
    assert found["tokens"][: len(ids)] == [tokenizer.id_to_token(token_id) for token_id in ids]
    assert found["token_type"][: len(ids)] == [kind(token_id) for token_id in ids]
    assert found["merges"] == [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    assert len(found["tokens"]) == len(found["token_type"]) == 340
    assert set(found["token_type"][len(ids) :]) == {gguf.TokenType.UNUSED}
    assert len({*found["tokens"]}) == 340


@pytest.mark.parametrize(
    ("config", "bos", "eos"),
    [
        ({"bos_token_id": 0, "eos_token_id": 0}, 0, 0),
        ({"bos_token_id": 1, "eos_token_id": 5}, 1, 5),
        ({"eos_token_id": [7, 0]}, 0, 7),
    ],
)
def test_the_special_ids_are_those_of_the_config_and_no_text_begins_with_one(
    original: Path, tmp_path: Path, config: dict[str, Any], bos: int, eos: int
) -> None:
    folder = copy(original, tmp_path / "model")
    edit_config(folder, **config)

    found = fields(converted(folder, tmp_path, "Q8_0")[0], "tokenizer.ggml.")

    assert (found["bos_token_id"], found["eos_token_id"]) == (bos, eos)
    assert found["add_bos_token"] is False


# The chat template

OWN, OTHER = "{{ messages[0]['content'] }}", "{{ messages }}"
WEBLABS = (
    "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
    "\n\n### 指示:\n大規模言語モデルについて説明してください。\n\n### 応答:"
)
"""The example of weblab-10b-instruction-sft's model card."""


def chat_template(folder: Path, choice: Literal["auto", "weblab", "none"] = "auto") -> str | None:
    (path,) = converted(folder, folder.parent / "results", "Q8_0", chat_template=choice)
    template = fields(path).get("tokenizer.chat_template")
    assert template is None or isinstance(template, str)
    return template


def rendered(template: str | None) -> str:
    """What the template makes of the model card's example, as transformers renders templates."""
    assert template is not None
    messages = [{"role": "user", "content": "大規模言語モデルについて説明してください。"}]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "name", ["weblab-10b-instruction-sft", "weblab-demo-instruction-sft", "my-weblab-instruction-sft-2"]
)
def test_an_instruction_model_of_weblab_gets_the_template_of_its_card(
    original: Path, tmp_path: Path, name: str
) -> None:
    assert rendered(chat_template(copy(original, tmp_path / name))) == WEBLABS


@pytest.mark.parametrize("name", ["weblab-10b", "pythia-70m", "other-instruction-sft"])
def test_other_models_get_none_and_the_user_is_told(
    original: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_template(copy(original, tmp_path / name)) is None
    assert "No chat template: a base model, or one whose template is not known (see --chat-template)." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_json": {"chat_template": OWN}},
        {
            "tokenizer_config_json": {
                "chat_template": [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": OWN}]
            }
        },
        {"chat_template_jinja": OWN},
        {"chat_template_jinja": OWN, "tokenizer_config_json": {"chat_template": OTHER}},
    ],
    ids=["tokenizer_config.json", "several in tokenizer_config.json", "chat_template.jinja", "both"],
)
@pytest.mark.parametrize("name", ["pythia-70m", "weblab-10b-instruction-sft"])
def test_a_template_of_the_checkpoints_own_is_taken_over_unless_another_is_asked_for(
    original: Path, tmp_path: Path, name: str, files: dict[str, object]
) -> None:
    folder = copy(original, tmp_path / name, **files)

    assert chat_template(folder) == OWN


@pytest.mark.parametrize("name", ["pythia-70m", "weblab-10b-instruction-sft"])
@pytest.mark.parametrize("own", [{}, {"chat_template_jinja": OWN}], ids=["has none", "has its own"])
def test_the_user_decides_over_the_template(original: Path, tmp_path: Path, name: str, own: dict[str, object]) -> None:
    folder = copy(original, tmp_path / "none" / name, **own)
    assert chat_template(folder, "none") is None

    folder = copy(original, tmp_path / "weblab" / name, **own)
    assert rendered(chat_template(folder, "weblab")) == WEBLABS


# The same input gives the same bytes


@pytest.mark.parametrize(
    "tool",
    ["gguf", "numpy", "llama-cpp-python", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub"],
)
def test_no_version_of_a_tool_is_in_the_file(original: Path, tmp_path: Path, tool: str) -> None:
    (path,) = converted(copy(original, tmp_path / "weblab-10b-instruction-sft", README_md=CARD), tmp_path, "Q8_0")

    header = path.read_bytes()[: gguf.GGUFReader(path).data_offset]

    assert b"weblab-10b-instruction-sft" in header
    assert version(tool).partition("+")[0].encode() not in header
