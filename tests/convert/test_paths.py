"""Models in folders of any name, on consoles of any encoding: Japanese, spaces, emoji, cp932, what is no text."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from convert.demo.corpus import read_corpus
from convert.source.download import is_hub_id
from tests.support.conversions import converted, run_convert
from weblab_local import SamplingParams, licence, load
from weblab_local.models.store import demo_model, models_dir, stored_models

ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"
GREEDY = SamplingParams(temperature=0, max_tokens=200)
FOLDER, NAME = "モデル 置き場 🗂️", "デモ 一号 🎌"


def answer(path: Path) -> str:
    with load(str(path), n_threads=1) as model:
        return model.generate(CAPITAL, GREEDY).text


def weblab(*arguments: str, stdin: str = "", encoding: str = "cp932") -> subprocess.CompletedProcess[str]:
    """The program at a console of that encoding, in Japanese."""
    return subprocess.run(
        [sys.executable, "-m", "weblab_local", "--lang", "ja", *arguments],
        input=stdin,
        capture_output=True,
        encoding=encoding,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        check=False,
    )


@contextmanager
def served(model: str | Path, **variables: str) -> Iterator[dict[str, Any]]:
    """What the server says of its model, and where it is."""
    command = [sys.executable, "-m", "weblab_local", "serve", "--model", str(model), "--port", "0", "--sidecar"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=os.environ | variables
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


def ask(server: dict[str, Any], path: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server['port']}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server['token']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def chat(server: dict[str, Any]) -> str:
    body = {"model": server["model"], "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}
    return str(ask(server, "/v1/chat/completions", body)["choices"][0]["message"]["content"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo under a name, and in a folder, that Japanese Windows cannot spell in its own character set."""
    path = tmp_path / FOLDER / f"{NAME}.gguf"
    path.parent.mkdir()
    shutil.copy(demo_model(), path)
    return path


def test_a_model_is_loaded_from_any_folder(model: Path) -> None:
    assert answer(model) == ANSWERS[CAPITAL]
    assert str(licence(str(model))) == str(licence("demo"))


def test_the_store_may_be_anywhere(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", str(tmp_path / FOLDER / "店"))
    assert weblab("models", "import", str(model)).returncode == 0
    assert [stored.name for stored in stored_models()] == [NAME]
    assert weblab("models", "use", NAME).returncode == 0
    done = weblab("generate", "--temperature", "0", "--threads", "1", CAPITAL)
    assert (done.returncode, done.stdout) == (0, ANSWERS[CAPITAL] + "\n"), done.stderr


def test_a_checkpoint_is_converted_from_and_to_any_folder(demo_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / FOLDER / "元 🧠"
    shutil.copytree(demo_checkpoint, source)
    done = run_convert(source, "--quant", "Q8_0", "--output", tmp_path / FOLDER / "結果")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / FOLDER / "結果").glob("*.gguf")
    assert path.name == "元 🧠-Q8_0.gguf"
    assert answer(path) == ANSWERS[CAPITAL]


@pytest.mark.parametrize("path", [r"C:\models\weblab", "C:/models/weblab", r"models\weblab", r"\\nas\weblab", "D:x"])
def test_a_path_of_windows_is_not_taken_for_an_id_on_the_hub(path: str, tmp_path: Path) -> None:
    assert not is_hub_id(path)
    done = run_convert(path, "--output", tmp_path)
    assert (done.returncode, f"There is no folder {path}." in done.stderr) == (1, True), done.stderr


def test_a_model_is_served_from_any_folder(model: Path) -> None:
    with served(model, PYTHONIOENCODING="cp932") as server:
        assert server["model"] == NAME
        assert [entry["id"] for entry in ask(server, "/v1/models")["data"]] == [NAME]
        assert chat(server) == ANSWERS[CAPITAL]


def test_generate_answers_at_a_console_in_cp932(model: Path) -> None:
    done = weblab("generate", "--model", str(model), "--temperature", "0", "--threads", "1", stdin=CAPITAL + "\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWERS[CAPITAL] + "\n", "")


def test_chat_talks_at_a_console_in_cp932(model: Path) -> None:
    done = weblab("chat", "--model", str(model), "--temperature", "0", "--threads", "1", stdin=f"{CAPITAL}\n/licence\n")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, ANSWERS[CAPITAL])
    assert "ライセンス: MIT" in done.stdout
    assert "デモ 一号" in done.stderr


def test_models_lists_what_cp932_cannot_spell(model: Path) -> None:
    models_dir().mkdir(parents=True)
    shutil.copy(model, models_dir())
    done = weblab("models")
    assert (done.returncode, done.stderr) == (0, "")
    assert "*  デモ 一号 ?  5.1 MB" in done.stdout


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="only Linux has file names that are no text")
def test_a_name_that_is_no_text_is_one_too(tmp_path: Path, demo_checkpoint: Path) -> None:
    """As an archive made on an old Japanese Windows unpacks: cp932 bytes in the name."""
    folder = tmp_path / os.fsdecode("モデル".encode("cp932"))
    folder.mkdir()
    path = folder / (os.fsdecode("デモ".encode("cp932")) + ".gguf")
    shutil.copy(demo_model(), path)
    assert answer(path) == ANSWERS[CAPITAL]
    with served(path) as server:
        assert [entry["id"] for entry in ask(server, "/v1/models")["data"]] == [server["model"]]
        assert chat(server) == ANSWERS[CAPITAL]
    missing = weblab("generate", "--model", f"{path}x", CAPITAL, encoding="utf-8")
    assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)
    (result,) = converted(demo_checkpoint, folder, "Q8_0")
    assert answer(result) == ANSWERS[CAPITAL]
