"""How long after Enter the first character of an answer is on the screen, with reading ahead and without.

    python -m tests.benchmarks.first_token [--model FILE] [--turns 4] [--repetitions 3] [--pause] [--page]

`weblab-local chat` at a terminal of 80 columns, or with --page the chat page in Chromium; a person types
CHARACTERS_PER_SECOND, and with --pause waits half a second before Enter (0.6 on the page, which waits a little longer
until it takes a text for all). The first question has 40 characters; the others follow in the same conversation. Each
repetition is a process, or a server, with reading ahead and one without, by turns. Prints the medians for each turn.
"""

import argparse
import statistics
import sys
import time
from functools import partial

from playwright.sync_api import Browser, expect, sync_playwright

from tests.server.page.browser import ARGUMENTS, CHROMIUM, GREEDY, visiting
from tests.server.support import serving
from tests.support.terminal import Terminal
from weblab_local.models.loading import load

CHARACTERS_PER_SECOND = 5
PAUSE, PAGE_PAUSE = 0.5, 0.6
MOST_SECONDS = 600
QUESTIONS = (
    "夏休みに家族で北海道へ旅行に行く予定です。おすすめの観光地を三つ教えてください。",
    "その中で子どもが一番喜ぶのはどこですか。",
    "そこへは札幌からどうやって行けばよいですか。",
    "近くにおいしい店はありますか。",
)
ENDLESS = ("/set temperature 0", "/set max_tokens 8")


def conversation(model: str, n_turns: int, read_ahead: bool, pause: bool) -> list[float]:
    """Seconds from Enter to the answer's first character, for each turn."""
    found = []
    option = "--read-ahead" if read_ahead else "--no-read-ahead"
    with Terminal("chat", "--model", model, option, timeout=MOST_SECONDS) as terminal:
        terminal.wait_for_prompt()
        for setting in ENDLESS:
            terminal.ask(setting)
        for question in QUESTIONS[:n_turns]:
            terminal.clear()
            for character in question:
                terminal.type(character)
                time.sleep(1 / CHARACTERS_PER_SECOND)
            terminal.wait_for(question)
            if pause:
                time.sleep(PAUSE)
            n_lines = len(terminal.lines)
            started = time.perf_counter()
            terminal.press("enter")
            terminal.wait_until(partial(has_more_lines, terminal, n_lines))
            found.append(time.perf_counter() - started)
            terminal.wait_for_prompt()
        terminal.enter("/exit")
        terminal.exit_code()
    return found


def conversation_on_page(browser: Browser, model: str, n_turns: int, read_ahead: bool, pause: bool) -> list[float]:
    """The same on the chat page."""
    found = []
    settings = {"settings": GREEDY | {"max_tokens": 8}}
    with (
        load(model, n_parallel=4) as engine,
        serving(engine, read_ahead=read_ahead) as server,
        visiting(browser, server.url, stored=settings) as chat,
    ):
        expect(chat.page.locator("#model")).to_be_visible()
        for n_answers, question in enumerate(QUESTIONS[:n_turns]):
            chat.field.press_sequentially(question, delay=1000 / CHARACTERS_PER_SECOND)
            if pause:
                time.sleep(PAGE_PAUSE)
            started = time.perf_counter()
            chat.field.press("Enter")
            expect(chat.answers.nth(n_answers).locator(".body")).not_to_be_empty()
            found.append(time.perf_counter() - started)
            chat.wait()
    return found


def has_more_lines(terminal: Terminal, n_lines: int) -> bool:
    """Whether something came out since there were `n_lines`."""
    return len(terminal.lines) > n_lines


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--turns", type=int, default=len(QUESTIONS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--pause", action="store_true", help="wait half a second before Enter")
    parser.add_argument("--page", action="store_true", help="on the chat page instead of at the terminal")
    arguments = parser.parse_args()
    runs: dict[bool, list[list[float]]] = {True: [], False: []}
    expect.set_options(timeout=MOST_SECONDS * 1000)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as browser,
    ):
        one = partial(conversation_on_page, browser) if arguments.page else conversation
        for repetition in range(arguments.repetitions):
            for read_ahead in (True, False) if repetition % 2 else (False, True):
                runs[read_ahead].append(one(arguments.model, arguments.turns, read_ahead, arguments.pause))
                print(read_ahead, [f"{seconds:.2f}" for seconds in runs[read_ahead][-1]], file=sys.stderr)
    print("| turn | without | with |\n| --- | --- | --- |")
    for turn in range(arguments.turns):
        without, having = (statistics.median(run[turn] for run in runs[ahead]) for ahead in (False, True))
        print(f"| {turn + 1} | {without:.2f} s | {having:.2f} s |")


if __name__ == "__main__":
    main()
