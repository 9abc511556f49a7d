"""The command line: what it prints where, its exit codes, and what it imports.

Most of it runs in this process; whatever is about the process itself, its imports, signals and streams, in its own.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from convert.demo.corpus import CHECKPOINT, read_corpus
from tests.support.command_line import CommandLine, Done
from tests.support.systems import on_posix
from tests.support.terminal import launch
from weblab_local.home import read_settings
from weblab_local.models.store import demo_model, models_dir, stored_models

CAPITAL = "日本の首都はどこですか？"
ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
WITH_INPUT = next(pair for pair in read_corpus() if pair.context is not None)
DEMO = ("--model", "demo", "--threads", "1")
GREEDY = (*DEMO, "--temperature", "0")
COMMANDS = ["chat", "generate", "tokenize", "serve", "app", "rpc-worker", "doctor", "bench", "models"]
HEAVY = {"torch", "transformers", "llama_cpp", "numpy"}


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "100")
    return CommandLine(monkeypatch, capsys)


def imported_by(code: str) -> set[str]:
    """The top-level modules that are loaded after `code` has run in a fresh interpreter."""
    report = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, encoding="utf-8", check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not imported_by("import weblab_local") & (HEAVY | {"typer", "rich", "prompt_toolkit", "convert"})


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["models"], ["models", "--help"]])
def test_help_and_the_store_load_nothing_heavy(arguments: list[str]) -> None:
    loaded = imported_by(f"sys.argv[1:] = {arguments}; from weblab_local.cli import main; main()")
    assert "typer" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_explains_itself(weblab: CommandLine, command: list[str]) -> None:
    done = weblab(*command, "--help")
    assert (done.code, done.stderr) == (0, "")
    assert re.search(" ".join(["Usage: .*", *command]), done.stdout)
    assert weblab(*command, "-h").stdout == done.stdout
    if not command:
        assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", ["verify", "use", "import", "rm"])
def test_every_command_of_the_store_explains_itself(weblab: CommandLine, command: str) -> None:
    done = weblab("models", command, "--help")
    assert (done.code, done.stderr) == (0, "")
    assert re.search(f"Usage: .* models {command} ", done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["generate", "--no-such-option", "x"],
        ["generate", "a", "b"],
        ["generate", "--max-tokens", "0", "x"],
        ["generate", "--temperature", "-1", "x"],
        ["generate", "--top-p", "1.5", "x"],
        ["generate", "--top-k", "viele", "x"],
        ["generate", "--kv-type", "q2", "x"],
        ["generate", "--n-ctx", "0", "x"],
        ["--lang", "de", "models"],
        ["models", "use"],
    ],
)
def test_wrong_usage_exits_with_2(weblab: CommandLine, arguments: list[str]) -> None:
    done = weblab(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "x"], "make convert"),
        (["generate", "--model", "no-such-model", "x"], "no-such-model"),
        (["generate", "--model", "n" * 300, "x"], "There is no model called"),
        (["generate", "--model", "~nobody-of-that-name/x", "x"], "There is no model called"),
        (["generate", "--model", "/dev", "x"], "There is no model called"),
        (["generate", *DEMO, ""], "empty"),
        (["generate", *DEMO, "長" * 5000], "2048"),
        (["generate", *DEMO, "--raw", "--input", "x", "x"], "raw"),
        (["generate", *DEMO, "--stop", "", "x"], "stop"),
        (["generate", *DEMO, "--n-gpu-layers", "some", "x"], "--n-gpu-layers"),
        (["tokenize", *DEMO[:2], "\ud800"], "surrogate"),
        (["models", "use", "x"], "'x'"),
        (["models", "rm", "x"], "'x'"),
        (["models", "rm", "demo"], "'demo'"),
        (["models", "verify", "x"], "'x'"),
        (["models", "import", "x.gguf"], "There is no file x.gguf"),
    ],
)
def test_an_error_is_explained_without_a_traceback_and_exits_with_1(
    weblab: CommandLine, arguments: list[str], said: str
) -> None:
    done = weblab(*arguments)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("weblab-local: ")
    assert said in done.stderr


TEXTS = ["", " ", "日本語とEnglish 🙂\n", "e\u0301 が", "a" + " " * 30 + "b", "龘"]


def test_tokenize_gives_hugging_faces_ids(weblab: CommandLine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = json.loads(weblab("tokenize", *DEMO[:2], "--json", text).stdout)
        assert [token["id"] for token in tokens] == expected
        joined = b"".join(bytes.fromhex(token["bytes"]) for token in tokens)
        assert joined.decode() == tokenizer.decode(expected)
        assert all(token["text"] in (None, bytes.fromhex(token["bytes"]).decode("utf-8", "ignore")) for token in tokens)
        assert weblab("tokenize", *DEMO[:2], "--json", stdin=text).stdout == json.dumps(tokens) + "\n"


def test_tokenize_takes_what_looks_like_a_special_token_for_text(weblab: CommandLine) -> None:
    tokens = json.loads(weblab("tokenize", *DEMO[:2], "--json", "<|endoftext|>").stdout)
    assert "".join(token["text"] for token in tokens) == "<|endoftext|>"


def test_tokenize_prints_a_line_for_each_token(weblab: CommandLine) -> None:
    tokens = json.loads(weblab("tokenize", *DEMO[:2], "--json", TEXTS[2] + "龘").stdout)
    done = weblab("tokenize", *DEMO[:2], TEXTS[2] + "龘")
    expected = [
        f"{token['id']:6d}  "
        + (repr(token["text"]) if token["text"] is not None else f"<{bytes.fromhex(token['bytes']).hex(' ')}>")
        for token in tokens
    ]
    assert (done.code, done.stdout.splitlines(), done.stderr) == (0, expected, "")
    assert "<" in done.stdout


def store(name: str, *, manifest: dict[str, Any] | None = None) -> Path:
    """Put the demo into the store under another name."""
    models_dir().mkdir(parents=True, exist_ok=True)
    path = models_dir() / f"{name}.gguf"
    path.write_bytes(demo_model().read_bytes())
    if manifest is not None:
        path.with_suffix(".json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def test_models_lists_the_store(weblab: CommandLine) -> None:
    empty = weblab("models")
    assert (empty.code, empty.stdout) == (0, "")
    assert str(models_dir()) in empty.stderr
    recipe = {"recipe": {"mixture": "Q4_K_M"}, "output": {"sha256": "ab" * 32}}
    store("一号", manifest={**recipe, "source": {"repository": "matsuo-lab/weblab-10b", "revision": "c0ffee" * 7}})
    store("zwei", manifest={"source": 5, "recipe": None})
    done = weblab("models")
    assert (done.code, done.stderr) == (0, "")
    _title, zwei, first = done.stdout.splitlines()
    assert re.fullmatch(r"\* +zwei +\d\.\d MB *", zwei)
    assert re.fullmatch(r" +一号 +\d\.\d MB +Q4_K_M +matsuo-lab/weblab-10b @ c0ffeec0ffee +abababababab *", first)


def test_models_shows_what_the_conversion_lost(weblab: CommandLine) -> None:
    store("a", manifest={"verification": {"passed": True, "mean_kl": {"ja": 0.00123, "en": 0.002}}})
    store("b", manifest={"verification": None})
    title, first, second = weblab("models").stdout.splitlines()
    assert "KL" in title.split()
    assert "ja 0.0012 en 0.0020" in first
    assert "ja" not in second


def test_models_use_chooses_the_default(weblab: CommandLine) -> None:
    store("a")
    store("b")
    assert weblab("models", "use", "a") == Done(0, "a is the default now.\n", "")
    assert [line[0] for line in weblab("models").stdout.splitlines()[1:]] == ["*", " "]
    assert read_settings()["model"] == "a"
    assert weblab("generate", "--threads", "1", "--temperature", "0", CAPITAL).stdout == ANSWERS[CAPITAL] + "\n"
    assert weblab("models", "rm", "a").code == 0
    assert weblab("models").stdout.splitlines()[1].startswith("*  b ")


def test_models_verify_finds_what_changed(weblab: CommandLine) -> None:
    sha256 = hashlib.sha256(demo_model().read_bytes()).hexdigest()
    store("good", manifest={"output": {"sha256": sha256}})
    store("plain")
    assert weblab("models", "verify") == Done(0, "good: as it was made\nplain: no SHA-256 recorded\n", "")
    assert weblab("models", "verify", "plain").code == 1
    bad = store("bad", manifest={"output": {"sha256": sha256}})
    with bad.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    done = weblab("models", "verify", "bad")
    assert (done.code, done.stdout) == (1, "bad: CHANGED\n")
    assert "make convert FORCE=1" in done.stderr
    done = weblab("models", "verify")
    assert (done.code, "bad: CHANGED" in done.stdout, "good: as it was made" in done.stdout) == (1, True, True)


def test_models_import_copies_a_file_with_its_manifest(weblab: CommandLine, tmp_path: Path) -> None:
    source = tmp_path / "日本語 モデル.GGUF"
    source.write_bytes(demo_model().read_bytes())
    source.with_suffix(".json").write_text('{"recipe": {"mixture": "Q8_0"}}')
    assert weblab("models", "import", source) == Done(0, "日本語 モデル is in the store.\n", "")
    assert [(model.name, model.mixture) for model in stored_models()] == [("日本語 モデル", "Q8_0")]
    done = weblab("generate", *GREEDY[2:], "--model", "日本語 モデル", CAPITAL)
    assert done.stdout == ANSWERS[CAPITAL] + "\n"
    again = weblab("models", "import", source)
    assert again.code == 1
    assert "models rm 日本語 モデル" in again.stderr
    assert weblab("models", "rm", "日本語 モデル").code == 0
    assert list(models_dir().iterdir()) == []


def test_models_import_refuses_what_is_no_gguf(weblab: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    done = weblab("models", "import", tmp_path / "x.gguf")
    assert (done.code, done.stdout) == (1, "")
    assert "no GGUF" in done.stderr
    assert stored_models() == []


@on_posix
def test_ctrl_c_during_an_import_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "large.gguf"
    with source.open("wb") as file:
        file.write(demo_model().read_bytes())
        file.truncate(4 * 2**30)  # a hole: it takes no room here, and long to read
    process = subprocess.Popen(launch("models", "import", str(source)), stderr=subprocess.PIPE, encoding="utf-8")
    partial = models_dir() / "large.gguf.partial"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        pass
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert (process.returncode, stderr.strip()) == (130, "")
    assert list(models_dir().iterdir()) == []
