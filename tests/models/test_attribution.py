"""`weblab_local.licence`: the text that an app shows of its model, from the model's file alone."""

from pathlib import Path

import gguf
import pytest

from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted
from weblab_local import ModelFileError, ModelNotFoundError, i18n, licence, load
from weblab_local.models.attribution import attribution
from weblab_local.models.store import demo_model, models_dir

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
WEBLAB = "weblab-10b-instruction-sft"
DEMO = """weblab-demo-instruction-sft
Licence: MIT (https://opensource.org/license/mit)
Changed: converted to GGUF and quantized to Q8_0"""


def convert(folder: Path, quant: str, output: Path) -> Path:
    random_checkpoint(folder, layers=1, hidden=256, intermediate=256, vocab_size=340)
    return converted(folder, output, quant)[0]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model under the real one's name, converted as it comes from the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    return convert(folder / f"models--matsuo-lab--{WEBLAB}" / "snapshots" / COMMIT, "W4", folder)


def test_the_real_model_is_attributed_as_cc_by_wants_it(snapshot: Path) -> None:
    """Section 3(a) of CC BY-NC 4.0: creator, licence with its address, the source, and that it was changed."""
    found = licence(str(snapshot))

    assert str(found) == (
        f"{WEBLAB} by Matsuo Laboratory, The University of Tokyo\n"
        "Licence: CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/), non-commercial use only\n"
        f"Source: https://huggingface.co/matsuo-lab/{WEBLAB}/tree/{COMMIT}\n"
        "Changed: converted to GGUF and quantized to W4"
    )
    assert (found.model, found.licence, found.non_commercial) == (WEBLAB, "cc-by-nc-4.0", True)


def test_it_is_said_in_japanese_too(snapshot: Path) -> None:
    found = licence(str(snapshot))
    i18n.use("ja")

    assert str(found) == (
        f"{WEBLAB} (作者: Matsuo Laboratory, The University of Tokyo)\n"
        "ライセンス: CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)、非商用利用のみ\n"
        f"出典: https://huggingface.co/matsuo-lab/{WEBLAB}/tree/{COMMIT}\n"
        "変更点: GGUF に変換し、W4 に量子化"
    )


def test_the_real_model_has_a_source_also_when_it_came_from_a_plain_folder(tmp_path: Path) -> None:
    path = convert(tmp_path / "weblab-10b", "F16", tmp_path)

    assert licence(str(path)).source == "https://huggingface.co/matsuo-lab/weblab-10b"
    assert str(licence(str(path))).endswith("Changed: converted to GGUF")


def test_the_demo_is_attributed_by_its_own_licence() -> None:
    assert str(licence("demo")) == DEMO
    assert not licence("demo").non_commercial


def test_without_a_name_it_is_the_default_models(snapshot: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        licence()
    models_dir().mkdir(parents=True)
    (models_dir() / "mine.gguf").symlink_to(snapshot)
    assert licence() == licence(str(snapshot))


def test_a_loaded_model_has_the_same() -> None:
    with load("demo", n_ctx=16) as model:
        assert attribution(model.metadata) == licence("demo")


def test_no_weight_is_read(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(demo_model())
    header_only = tmp_path / "header.gguf"
    header_only.write_bytes(demo_model().read_bytes()[: reader.data_offset])

    assert licence(str(header_only)) == licence("demo")


def test_a_file_that_says_nothing_gives_its_name_and_says_so(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "stranger.gguf", "gptneox")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert str(licence(str(tmp_path / "stranger.gguf"))) == (
        "stranger\nLicence: unknown; ask those who made the model.\nChanged: converted to GGUF"
    )


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(demo_model().read_bytes()[:100])

    with pytest.raises(ModelFileError, match="is no GGUF"):
        licence(str(damaged))
