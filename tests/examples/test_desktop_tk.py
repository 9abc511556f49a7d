"""examples/desktop_tk.py as a person meets it: a real window, keys and clicks from outside, and what it shows."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from convert.demo.corpus import read_corpus
from tests.examples.desktop import App
from tests.support.conversions import ROOT
from weblab_local import licence

EXAMPLE = ROOT / "examples" / "desktop_tk.py"
ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"
EXPLAIN = "大規模言語モデルについて説明してください。"

HOLD_LOADING = """
import weblab_local
load = weblab_local.load

def held(model, on_progress):
    def progress(share):
        on_progress(share)
        if share >= 0.5:
            sys.stdin.readline()
    return load(model, on_progress=progress)

weblab_local.load = held
"""
HOLD_ANSWERS = """
from weblab_local.chat.session import ChatSession
stream = ChatSession.stream
ChatSession.stream = lambda *rest: stream(*rest, on_progress=lambda done, total: sys.stdin.readline())
"""
"""Each stops the engine's thread, inside of llama.cpp's loading or of the prompt, until stdin is closed."""


def window(screen: Mapping[str, str], *arguments: str, hold: str = "", **variables: str) -> App:
    """The example's window; with `hold` it runs after that code, in the same process."""
    command = [str(EXAMPLE), *arguments]
    if hold:
        launch = f"import runpy, sys\n{hold}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        command = ["-c", launch, *command]
    return App([sys.executable, *command], screen, os.environ | variables)


def shown(instruction: str, answer: str) -> str:
    return f"> {instruction}\n{answer}"


def test_it_answers_in_japanese_and_remembers_the_conversation(screen: Mapping[str, str]) -> None:
    with window(screen) as app:
        app.wait_until_free()
        app.ask(CAPITAL)
        app.wait_until_free()
        assert app.transcript == shown(CAPITAL, ANSWERS[CAPITAL])
        app.ask(EXPLAIN)
        app.wait_until_free()
        assert app.transcript.startswith(f"{shown(CAPITAL, ANSWERS[CAPITAL])}\n\n> {EXPLAIN}\n")
        app.close()
        assert app.exit_code() == 0


def test_it_shows_the_licence_of_its_model(screen: Mapping[str, str]) -> None:
    with window(screen) as app:
        app.wait_for(".note cget -text", str(licence("demo")))


def test_it_speaks_japanese_where_the_system_does(screen: Mapping[str, str]) -> None:
    with window(screen, LANGUAGE="ja", LANG="C.UTF-8") as app:
        assert [app.tcl(f".{button} cget -text") for button in ("send", "stop")] == ["送信", "停止"]
        app.wait_for("string match *ライセンス* [.note cget -text]", "1")


def test_shift_enter_begins_a_line_and_enter_sends_both(screen: Mapping[str, str]) -> None:
    with window(screen) as app:
        app.wait_until_free()
        app.click(".field")
        app.xdotool("type", "one")
        app.press("shift+Return")
        app.xdotool("type", "two")
        app.wait_for(".field get 1.0 end", "one\ntwo")
        app.enter()
        app.wait_until_free()
        assert app.transcript.startswith("> one\ntwo\n")


def test_the_window_lives_while_the_model_is_loaded(screen: Mapping[str, str]) -> None:
    with window(screen, hold=HOLD_LOADING) as app:
        app.wait_for("expr {[.progress cget -value] >= 50}", "1")
        app.click(".field")
        app.paste(CAPITAL)
        app.press("Return")
        app.wait_for(".field get 1.0 end", CAPITAL)
        assert app.tcl(".send instate disabled") == "1"
        assert app.tcl("winfo ismapped .progress") == "1"
        app.release()
        app.wait_until_free()
        assert app.tcl("winfo ismapped .progress") == "0"
        app.click(".send")
        app.wait_until_free()
        assert app.transcript == shown(CAPITAL, ANSWERS[CAPITAL])


def test_stop_ends_an_answer_while_the_window_lives(screen: Mapping[str, str]) -> None:
    with window(screen, hold=HOLD_ANSWERS) as app:
        app.wait_until_free()
        app.ask(EXPLAIN)
        app.wait_for(".stop instate !disabled", "1")
        app.click(".field")
        app.paste(CAPITAL)
        app.click(".stop")
        assert app.transcript == f"> {EXPLAIN}"
        app.release()
        app.wait_until_free()
        stopped = app.transcript
        assert stopped.endswith(" [stopped]")
        assert len(stopped) < len(shown(EXPLAIN, ANSWERS[EXPLAIN]))
        app.click(".field")
        app.enter()
        app.wait_until_free()
        assert app.transcript.startswith(f"{stopped}\n\n> {CAPITAL}\n")


@pytest.mark.parametrize("hold", [HOLD_LOADING, HOLD_ANSWERS], ids=["loading", "answering"])
def test_closing_the_window_in_the_middle_ends_the_program_cleanly(screen: Mapping[str, str], hold: str) -> None:
    with window(screen, hold=hold) as app:
        if hold == HOLD_LOADING:
            app.wait_for("expr {[.progress cget -value] >= 50}", "1")
        else:
            app.wait_until_free()
            app.ask(EXPLAIN)
            app.wait_for(".stop instate !disabled", "1")
        app.close()
        app.wait_until_gone()
        app.release()
        assert app.exit_code() == 0
        assert app.output() == ""


def test_what_goes_wrong_is_said_in_the_window(screen: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    with window(screen, str(tmp_path / "damaged.gguf")) as app:
        while not app.transcript:
            pass
        assert "convert the checkpoint again" in app.transcript
        assert app.tcl(".send instate disabled") == "1"
        app.close()
        assert app.exit_code() == 0


def test_an_instruction_that_is_too_long_is_refused_and_the_next_one_answered(screen: Mapping[str, str]) -> None:
    with window(screen) as app:
        app.wait_until_free()
        app.ask(CAPITAL * 1000)
        app.wait_until_free()
        assert "Shorten it" in app.transcript
        app.ask(CAPITAL)
        app.wait_until_free()
        assert app.transcript.endswith(shown(CAPITAL, ANSWERS[CAPITAL]))
