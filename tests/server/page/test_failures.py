"""What the page says and does when the server refuses, is busy, or is gone."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from playwright.sync_api import Browser, expect

from tests.server.page.browser import Chat, visiting
from tests.server.support import KEY, serving
from tests.support.engines import ONE, PAIRS, PATIENCE, Gate, hold, long_prompt
from weblab_local.engine.engine import Engine

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
HELLO = "Say hello."
UNREACHABLE = "The server cannot be reached"


@pytest.fixture(scope="module")
def keyed_url(engine: Engine) -> Iterator[str]:
    """The address of a server that wants a key."""
    with serving(engine, api_keys=[KEY]) as running:
        yield running.url


def test_a_key_is_asked_for_until_it_is_right_and_kept_for_the_tab_alone(browser: Browser, keyed_url: str) -> None:
    with visiting(browser, keyed_url) as chat:
        dialog = chat.page.get_by_role("dialog", name="An API key is needed")
        key = dialog.get_by_label("API key", exact=True)
        expect(key).to_be_focused()
        expect(dialog.get_by_role("alert")).to_be_hidden()
        key.fill("a-key-that-is-wrong")
        chat.page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("The server did not accept this key.")

        key.fill(KEY)
        chat.page.keyboard.press("Enter")

        expect(dialog).to_be_hidden()
        assert chat.ask(HELLO) == ANSWERS[HELLO]
        chat.page.reload()
        chat.ask(HELLO)
        expect(dialog).to_be_hidden()
        assert KEY not in chat.page.evaluate("JSON.stringify(localStorage)")
        chat.forgive("401")


def test_a_key_in_the_address_is_taken_out_of_it(browser: Browser, keyed_url: str) -> None:
    with visiting(browser, keyed_url, path=f"/#key={KEY}") as chat:
        assert chat.ask(HELLO) == ANSWERS[HELLO]

        assert chat.page.url == f"{keyed_url}/"
        assert all(KEY not in url for url in chat.requests)


def test_a_question_that_lacked_the_key_is_answered_once_it_is_there(browser: Browser, keyed_url: str) -> None:
    with visiting(browser, keyed_url) as chat:
        chat.button("Cancel").click()
        chat.begin(HELLO)
        dialog = chat.page.get_by_role("dialog", name="An API key is needed")
        dialog.get_by_label("API key", exact=True).fill(KEY)
        chat.button("Connect").click()

        expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[HELLO])
        expect(chat.messages).to_have_count(2)
        chat.forgive("401")


@contextmanager
def occupied(url: str) -> Iterator[None]:
    """All of a server's places are taken by a client that reads no further than the first bytes."""
    body = {"messages": [{"role": "user", "content": HELLO}], "n": 4, "stream": True, "max_tokens": 1900}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body | {"logit_bias": {"0": -100}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        response.read(1)
        yield


def test_a_busy_server_is_waited_for(browser: Browser, engine: Engine) -> None:
    with serving(engine, queue=0) as running, visiting(browser, running.url) as chat:
        with occupied(running.url):
            chat.begin(HELLO)
            failure = chat.answers.last
            expect(failure).to_contain_text("The server is busy")
            expect(failure).to_contain_text("there is no room for more")  # the server's own words
            expect(failure.get_by_role("button")).to_have_attribute("aria-disabled", "true")
            expect(failure.get_by_role("button")).to_have_text("Try again in 1 s")

        chat.button("Try again").click()

        expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[HELLO])
        expect(chat.messages).to_have_count(2)
        chat.forgive("429")


def test_a_server_that_never_began_to_answer_is_waited_for(browser: Browser, engine: Engine) -> None:
    with serving(engine, timeout=0.5) as running, visiting(browser, running.url) as chat:
        gate, held = hold(engine)
        chat.begin(HELLO)
        failure = chat.answers.last
        expect(failure).to_contain_text("The server is busy")
        expect(failure).to_contain_text("Nothing came of the answer in 0.5 seconds")
        expect(failure.get_by_role("button")).to_have_attribute("aria-disabled", "true")
        gate.open()
        list(held)

        chat.button("Try again").click()

        expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[HELLO])


def test_a_server_that_is_gone_costs_no_words(chat: Chat) -> None:
    chat.page.context.set_offline(True)

    chat.begin(HELLO)

    expect(chat.answers.last).to_contain_text(UNREACHABLE)
    expect(chat.messages.first.locator(".body")).to_have_text(HELLO)
    chat.page.context.set_offline(False)
    chat.button("Try again").click()
    expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[HELLO])
    expect(chat.messages).to_have_count(2)
    chat.forgive("ERR_INTERNET_DISCONNECTED")


def test_a_server_that_ends_in_the_middle_of_an_answer(browser: Browser, engine: Engine) -> None:
    gate = Gate()
    with ExitStack() as stack:
        with serving(engine) as running:
            chat = stack.enter_context(visiting(browser, running.url))
            chat.endless(max_tokens=1500, bytes_per_second=-1)
            chat.begin(HELLO)
            expect(chat.answers.last.locator(".text")).to_be_visible()
            stack.enter_context(closing(engine.stream(long_prompt(300), ONE, on_progress=gate)))
            stack.callback(gate.open)
            gate.wait()  # the answer stands still, and its server ends

        expect(chat.answers.last).to_contain_text("The connection broke off during the answer")
        expect(chat.answers.last.locator(".text")).to_be_visible()
        chat.button("Try again").click()
        expect(chat.answers.last).to_contain_text(UNREACHABLE)
        expect(chat.messages.first.locator(".body")).to_have_text(HELLO)
        chat.forgive("ERR_CONNECTION_REFUSED")


def test_the_page_finds_the_server_when_it_comes_back(chat: Chat) -> None:
    chat.page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    chat.page.reload()
    expect(chat.button(UNREACHABLE)).to_be_visible()

    chat.page.unroute("**/v1/models")
    chat.button(UNREACHABLE).click()

    expect(chat.page.locator("#model")).to_contain_text("weblab-demo-instruction-sft")
    chat.forgive("ERR_CONNECTION_REFUSED")
