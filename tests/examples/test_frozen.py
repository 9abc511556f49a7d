"""The Tk example frozen by PyInstaller: it runs where there is no Python, and brings what it needs and no more."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import llama_cpp
import pytest

from convert.demo.corpus import read_corpus
from tests.examples.desktop import App
from tests.support.frozen import freeze
from weblab_local import licence

ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("PyInstaller") is None or importlib.util.find_spec("_tkinter") is None:
        pytest.skip("freezing needs PyInstaller and tkinter")
    return freeze(tmp_path_factory.mktemp("frozen"))


def files(program: Path) -> list[Path]:
    """What is in the app's folder, links aside."""
    return [path for path in program.parent.rglob("*") if path.is_file() and not path.is_symlink()]


def test_it_answers_without_a_python_on_its_path(program: Path, screen: Mapping[str, str], tmp_path: Path) -> None:
    with App([program], screen, {"HOME": str(tmp_path)}) as app:
        app.wait_until_free()
        assert app.tcl(".note cget -text") == str(licence("demo"))
        app.ask(CAPITAL)
        app.wait_until_free()
        assert app.transcript == f"> {CAPITAL}\n{ANSWERS[CAPITAL]}"
        loaded = set(Path(f"/proc/{app.process.pid}/maps").read_text().split())
        app.close()
        assert app.exit_code() == 0
        assert app.output() == ""
    libraries = {path for path in loaded if "llama" in path or "ggml" in path}
    assert libraries == {str(path) for path in llama_libraries(program)}


def test_it_speaks_japanese(program: Path, screen: Mapping[str, str], tmp_path: Path) -> None:
    with App([program], screen, {"HOME": str(tmp_path), "LANG": "ja_JP.UTF-8"}) as app:
        assert app.tcl(".send cget -text") == "送信"
        app.wait_for("string match *ライセンス* [.note cget -text]", "1")


def llama_libraries(program: Path) -> list[Path]:
    return sorted(path for path in files(program) if path.name.startswith(("libllama", "libggml", "libmtmd")))


def test_every_library_of_llama_cpp_is_there_once(program: Path) -> None:
    built = {path.name.partition(".")[0] for path in (Path(llama_cpp.__file__).parent / "lib").glob("lib*")}
    names = [path.name.partition(".")[0] for path in llama_libraries(program)]
    assert sorted(names) == sorted(built - {"libmtmd"})


def test_it_holds_nothing_of_what_only_converting_needs(program: Path) -> None:
    parts = {part for path in files(program) for part in path.relative_to(program.parent).parts}
    assert parts.isdisjoint(
        {"torch", "transformers", "huggingface_hub", "tokenizers", "numba", "gguf", "convert", "lm_eval"}
    )
