"""`weblab-local chat` driven as a person would: at a terminal of 80 columns, and with its input in a pipe."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.demo.corpus import read_corpus
from tests.support.privacy import FILE, everything_open, mode
from tests.support.terminal import Terminal, launch
from weblab_local import i18n, licence
from weblab_local.cli.chat_commands import COMMANDS

ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}
CAPITAL = "日本の首都はどこですか？"
EXPLAIN = "大規模言語モデルについて説明してください。"
PROMPT_TOKENS, CAPITAL_TOKENS = 31, 3

ENDLESS = ("/set repeat_penalty 0.01", "/set max_tokens 1900")
"""Repeating is made so much likelier that the demo never comes to an end, with greedy decoding too."""


def chat(*arguments: str) -> Terminal:
    return Terminal("chat", "--model", "demo", "--temperature", "0", "--threads", "1", *arguments)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with chat() as terminal:
        terminal.wait_for_prompt()
        yield terminal


def test_a_conversation_in_japanese() -> None:
    with chat() as terminal:
        terminal.wait_for_prompt()
        greeting = terminal.screen
        assert greeting.startswith("weblab-demo-instruction-sft-Q8_0 (0.01 GB)\n")
        assert "runs on the CPU" in greeting
        assert "\nLicence of the model: mit.\n" in greeting
        assert terminal.ask(CAPITAL) == [ANSWERS[CAPITAL]]
        assert "".join(terminal.ask(EXPLAIN)) == ANSWERS[EXPLAIN]
        assert terminal.ask("Say hello.") == [ANSWERS["Say hello."]]
        assert terminal.ask("/stats")[0].endswith(" of 2048 tokens used, in 3 turns.")
        terminal.press("ctrl-d")
        assert terminal.exit_code() == 0


def test_the_commands(terminal: Terminal, tmp_path: Path) -> None:
    ask = terminal.ask
    sessions = tmp_path / "weblab-home" / "sessions"
    listed = ask("/help")
    assert [line.split()[0] for line in listed[:-1]] == [f"/{name}" for name in COMMANDS]
    assert ask("/undo") == ["The conversation has no turn yet."]
    assert ask("/regen") == ["The conversation has no turn yet."]
    assert ask("/stats") == ["0 of 2048 tokens used, in 0 turns."]
    assert ask(CAPITAL) == ask("/regen") == [ANSWERS[CAPITAL]]
    used, last = ask("/stats")[0], "".join(ask("/stats")[1:])
    assert used == f"{PROMPT_TOKENS + CAPITAL_TOKENS} of 2048 tokens used, in 1 turns."
    assert re.search(rf"Last answer: {PROMPT_TOKENS} tokens read \({PROMPT_TOKENS - 1} from the cache\)", last)
    assert f"{CAPITAL_TOKENS} tokens written" in last

    assert "".join(ask("/save")) == f"Saved to {sessions}/last.weblab."
    assert "".join(ask("/save 首都の話")) == f"Saved to {sessions}/首都の話.weblab."
    assert ask("/new") == ["A new conversation."]
    assert ask("/stats")[0] == "0 of 2048 tokens used, in 0 turns."
    assert "".join(ask("/load 首都の話")) == f"1 turns from {sessions}/首都の話.weblab."
    assert ask("/undo") == [f"Taken back: {CAPITAL}"]
    assert "".join(ask("/load")) == f"1 turns from {sessions}/last.weblab."
    assert "".join(ask("/load none")) == f"There is no session {sessions}/none.weblab."

    assert ask("/system") == ["System message: none"]
    assert ask("/system 短く答えてください。") == ["System message: 短く答えてください。"]
    assert ask("/stats")[0] > used
    assert ask("/system -") == ["System message: none"]

    assert "  temperature = 0.0" in ask("/set")
    assert ask("/set top-k 7") == ["  top_k = 7"]
    assert ask("/set top_k") == ["  top_k = 7"]
    assert ask("/set seed 5") == ["  seed = 5"]
    assert ask("/set seed none") == ["  seed = None"]
    assert ask("/set top_k x") == ["'x' is no number."]
    assert ask("/set colour 1")[0] == "There is no setting colour."
    assert "top_p" in "".join(ask("/set top_p 2"))
    assert ask("/set max_tokens 1") == ["  max_tokens = 1"]
    assert "".join(ask("/regen")) in ANSWERS[CAPITAL] + "\N{REPLACEMENT CHARACTER}"

    assert ask("/licence") == str(licence("demo")).splitlines()
    terminal.clear()
    terminal.enter("/exit")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    "message",
    [
        "/etc/fstab を説明してください。",
        "/etc/fstab",
        "/tmp にあるファイルは消してよいですか？",
        "// 合計を返す",
        "/* 合計 */",
        "/** 合計 */ int sum(int a, int b);",
        "／と＼の違いは？",
        " /help",
    ],
)
def test_a_message_may_begin_with_a_slash(terminal: Terminal, message: str) -> None:
    terminal.ask("/set max_tokens 1")
    terminal.ask(message)
    assert terminal.ask("/undo") == [f"Taken back: {message}"]


@pytest.mark.parametrize("pasted", ["/**\n * 合計を返す\n */", "/help\n/new", "/save\nと入力すると？"])
def test_a_pasted_text_of_several_lines_is_no_command(terminal: Terminal, pasted: str) -> None:
    terminal.ask("/set max_tokens 1")
    terminal.clear()
    terminal.paste(pasted)
    terminal.wait_for(pasted.rpartition("\n")[2])
    terminal.press("enter")
    terminal.wait_for_prompt()
    assert terminal.ask("/undo") == f"Taken back: {pasted}".split("\n")


def test_a_command_in_full_width_is_one(terminal: Terminal) -> None:
    assert terminal.ask("／stats") == ["0 of 2048 tokens used, in 0 turns."]
    assert terminal.ask("／ｓｔａｔｓ") == ["0 of 2048 tokens used, in 0 turns."]
    assert terminal.ask("／system　短く答えてください。") == ["System message: 短く答えてください。"]
    assert terminal.ask("／ｓｅｔ　ｔｏｐ＿ｐ　０．５") == ["  top_p = 0.5"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("/hlep", "There is no command /hlep. Did you mean /help?"),
        ("/sav 首都の話", "There is no command /sav. Did you mean /save?"),
        ("/nope", "There is no command /nope."),
        ("/", "There is no command /."),
        ("/new 物語を書いて。", "/new takes nothing behind it."),
    ],
)
def test_what_may_be_meant_as_a_command_stays_to_be_edited_or_sent(terminal: Terminal, typed: str, said: str) -> None:
    terminal.ask("/set max_tokens 1")
    terminal.clear()
    terminal.enter(typed)
    terminal.wait_for("press Enter to send it as a message.")
    terminal.wait_for(f"> {typed}")
    assert terminal.lines[1:3] == [said, "/help lists them."]
    terminal.press(*["backspace"] * len(typed))
    terminal.wait_for_prompt()
    assert terminal.ask("/undo") == ["The conversation has no turn yet."]

    terminal.clear()
    terminal.enter(typed)
    terminal.wait_for("press Enter to send it as a message.")
    terminal.press("enter")
    terminal.wait_for_prompt()
    assert terminal.ask("/undo") == [f"Taken back: {typed}"]


def test_what_was_asked_about_is_gone_with_ctrl_c(terminal: Terminal) -> None:
    for _ in range(2):
        terminal.clear()
        terminal.enter("/hlep")
        terminal.wait_for("press Enter to send it as a message.")
        terminal.press("ctrl-c")
        terminal.wait_for_prompt()
    assert terminal.ask("/undo") == ["The conversation has no turn yet."]


def test_where_a_conversation_cannot_be_saved_the_chat_goes_on(terminal: Terminal) -> None:
    assert terminal.ask(CAPITAL) == [ANSWERS[CAPITAL]]
    for place in ("/dev/null/x.weblab", "/proc/x.weblab", "/dev"):
        assert "cannot be saved" in "".join(terminal.ask(f"/save {place}/"))
    assert terminal.ask("Say hello.") == [ANSWERS["Say hello."]]


def test_tab_completes_a_command(terminal: Terminal) -> None:
    terminal.type("/sta")
    terminal.press("tab")
    terminal.wait_for("/stats")
    terminal.press("enter")
    terminal.wait_for("0 of 2048 tokens used")
    terminal.wait_for_prompt()
    terminal.clear()
    terminal.type("/s")
    terminal.press("tab")
    for name in ("/system", "/set", "/stats", "/save"):
        terminal.wait_for(name)
    assert "/load" not in terminal.screen


def test_an_instruction_of_several_lines(terminal: Terminal) -> None:
    terminal.ask("/set max_tokens 4")
    for first, keys in (("一行目", ["alt-enter"]), ("一行目\\", ["enter"])):
        terminal.clear()
        terminal.type(first)
        terminal.wait_for(f"> {first}")
        terminal.press(*keys)
        terminal.wait_for("> 一行目\n")
        terminal.enter("二行目")
        terminal.wait_for_prompt()
        assert terminal.ask("/undo") == ["Taken back: 一行目", "二行目"]


def test_a_paste_of_several_lines_is_one_instruction(terminal: Terminal) -> None:
    terminal.ask("/set max_tokens 4")
    pasted = "次の文を直してください。\n\n  She don't like the rain.\n\t終わり"
    terminal.clear()
    terminal.paste(pasted + "\n")
    terminal.wait_for("終わり")
    terminal.press("enter")
    terminal.wait_for_prompt()
    assert terminal.ask("/undo") == f"Taken back: {pasted}".expandtabs().split("\n")
    assert terminal.ask("/undo") == ["The conversation has no turn yet."]


def test_the_history_outlives_a_run() -> None:
    with chat() as terminal:
        terminal.wait_for_prompt()
        terminal.ask(CAPITAL)
        terminal.ask("/stats")
        terminal.press("ctrl-d")
        assert terminal.exit_code() == 0
    with chat() as terminal:
        terminal.wait_for_prompt()
        terminal.clear()
        terminal.press("up")
        terminal.wait_for("> /stats")
        terminal.press("up")
        terminal.wait_for(f"> {CAPITAL}")
        terminal.press("enter")
        terminal.wait_for(ANSWERS[CAPITAL])


def test_nobody_else_can_read_the_history(tmp_path: Path) -> None:
    history = tmp_path / "weblab-home" / "chat_history"
    with everything_open(), chat() as terminal:
        terminal.wait_for_prompt()
        assert mode(history) == FILE, "before anything is typed"
        terminal.ask("/stats")
        history.unlink()
        terminal.ask("/set")
        assert mode(history) == FILE
        assert "/set" in history.read_text()
    history.chmod(0o644)
    with chat() as terminal:
        terminal.wait_for_prompt()
        assert mode(history) == FILE, "one from before"


@pytest.mark.parametrize(
    ("arguments", "variable", "kept"),
    [(["--no-history"], "", False), ([], "1", False), ([], "0", True), ([], "", True)],
)
def test_the_history_can_be_left_out(
    arguments: list[str], variable: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBLAB_LOCAL_NO_HISTORY", variable)
    home = tmp_path / "weblab-home"
    with chat(*arguments) as terminal:
        terminal.wait_for_prompt()
        terminal.ask("/stats")
        terminal.press("up")
        terminal.wait_for("> /stats")
    assert [path.name for path in home.glob("*")] == (["chat_history"] if kept else [])


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(terminal: Terminal) -> None:
    for setting in ENDLESS:
        terminal.ask(setting)
    terminal.clear()
    terminal.enter("話して。")
    terminal.wait_for("なさい。話です。")
    terminal.press("ctrl-c")
    terminal.wait_for("[stopped]")
    terminal.wait_for_prompt()
    written = re.search(r"(\d+) tokens written", "".join(terminal.ask("/stats")))
    assert written
    assert 2 < int(written[1]) < 1900
    terminal.ask("/set max_tokens 8")
    terminal.ask("続けて。")
    assert terminal.ask("/stats")[0].endswith("in 2 turns.")
    assert terminal.ask("/undo") == ["Taken back: 続けて。"]
    assert terminal.ask("/undo") == ["Taken back: 話して。"]
    assert terminal.ask("/set repeat_penalty 1") == ["  repeat_penalty = 1.0"]
    terminal.ask("/set max_tokens 100")
    assert terminal.ask(CAPITAL) == [ANSWERS[CAPITAL]]


def test_ctrl_c_while_typing_does_not_leave(terminal: Terminal) -> None:
    terminal.type("やっぱり")
    terminal.wait_for("やっぱり")
    terminal.press("ctrl-c")
    terminal.wait_for("Ctrl-D or /exit leaves.")
    terminal.wait_for_prompt()
    assert terminal.ask(CAPITAL) == [ANSWERS[CAPITAL]]
    terminal.press("ctrl-c", "ctrl-d")
    assert terminal.exit_code() == 0


def test_a_conversation_that_overflows_says_what_was_dropped_and_goes_on() -> None:
    with chat("--n-ctx", "128", "--max-tokens", "40") as terminal:
        terminal.wait_for_prompt()
        printed = [terminal.ask(CAPITAL) for _ in range(8)]
        assert {lines[-1] for lines in printed} == {ANSWERS[CAPITAL]}
        notes = ["".join(lines[:-1]) for lines in printed]
        assert notes[:3] == ["", "", ""]
        said = [re.search(r"The (\d+) oldest turns no longer fit", note) for note in notes if note]
        dropped = [int(match[1]) for match in said if match]
        assert len(dropped) == len(said) > 0
        used = terminal.ask("/stats")[0]
        assert f"in {len(printed) - sum(dropped)} turns." in used
        too_long = "".join(terminal.ask("長い話。" * 40))
        assert "128" in too_long
        assert terminal.ask(CAPITAL)[-1] == ANSWERS[CAPITAL]


def test_editing_in_the_middle_of_a_japanese_line(terminal: Terminal) -> None:
    terminal.type("日本の主都はは、どこですか？")
    terminal.wait_for("日本の主都はは、どこですか？")
    terminal.press(*["left"] * 6, *["backspace"] * 3, "left", "backspace")
    terminal.type("首")
    terminal.wait_for("> 日本の首都どこですか？")
    terminal.press("right")
    terminal.type("は")
    terminal.wait_for(f"> {CAPITAL}")
    terminal.press("enter")
    terminal.wait_for(ANSWERS[CAPITAL])
    terminal.wait_for_prompt()
    assert terminal.ask("/undo") == [f"Taken back: {CAPITAL}"]


def test_editing_a_japanese_line_that_wraps(terminal: Terminal) -> None:
    line = "吾輩は猫である。名前はまだ無い。" * 6
    terminal.ask("/set max_tokens 4")
    terminal.clear()
    terminal.type(line)
    terminal.wait_for(line)
    terminal.press(*["left"] * 60, "backspace")
    edited = line[: len(line) - 61] + line[len(line) - 60 :]
    terminal.wait_for(f"> {edited}")
    terminal.press("enter")
    terminal.wait_for_prompt()
    assert "".join(terminal.ask("/undo")) == f"Taken back: {edited}"


def test_it_speaks_japanese() -> None:
    i18n.use("ja")
    try:
        said = [i18n._(text) for text in ("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.", "leave")]
    finally:
        i18n.use(None)
    with Terminal("--lang", "ja", "chat", "--model", "demo", "--temperature", "0") as terminal:
        terminal.wait_for_prompt()
        terminal.wait_for(said[0])
        assert said[1] in "".join(terminal.ask("/help"))
        assert all(not text.isascii() for text in said)


def piped_chat(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = launch("chat", "--model", "demo", "--temperature", "0", "--threads", "1", *arguments)
    return subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", env=os.environ | {"LANG": "C.UTF-8"}, check=False
    )


def test_lines_in_a_pipe_are_answered_on_stdout_alone() -> None:
    done = piped_chat(f"{CAPITAL}\n\n{EXPLAIN}\n/nope\nSay hello.")
    assert done.returncode == 0
    assert done.stdout == "".join(ANSWERS[line] + "\n" for line in (CAPITAL, EXPLAIN, "Say hello."))
    assert "Licence of the model" in done.stderr
    assert "There is no command /nope." in done.stderr
    assert "Not sent: /nope" in done.stderr


def test_exit_in_a_pipe_leaves_the_rest_unread() -> None:
    done = piped_chat(f"/exit\n{CAPITAL}\n")
    assert (done.stdout, done.returncode) == ("", 0)


def test_a_home_that_cannot_be_written_to_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", "/dev/null/home")
    with chat() as terminal:
        terminal.wait_for_prompt()
        assert terminal.ask(CAPITAL) == [ANSWERS[CAPITAL]]
