"""While somebody types on the page, the model reads along."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Request, expect

from tests.server.page.browser import Chat, visiting
from tests.server.page.test_access import compose
from tests.server.support import Running, serving
from tests.support.engines import PAIRS, engine_of, until_read

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
CARD = "大規模言語モデルについて説明してください。"
HELLO = "Say hello."


@pytest.fixture
def server() -> Iterator[Running]:
    with engine_of(n_parallel=2) as engine, serving(engine, read_ahead=True) as server:
        yield server


@pytest.fixture
def chat(browser: Browser, server: Running) -> Iterator[Chat]:
    with visiting(browser, server.url) as chat:
        expect(chat.page.locator("#model")).to_be_visible()
        yield chat


def read(text: str, *, finished: bool) -> Callable[[Request], bool]:
    """Whether a request has it read that `text` is typed, and is probably all or not."""

    def wanted(request: Request) -> bool:
        if not is_reading(request):
            return False
        body: Any = request.post_data_json
        return (body["messages"][-1]["content"], body["finished"]) == (text, finished)

    return wanted


def is_reading(request: Request) -> bool:
    return request.url.endswith("/v1/read_ahead")


def send(chat: Chat) -> str:
    """Send what is in the field; the answer."""
    chat.field.press("Enter")
    chat.answers.last.wait_for()
    chat.wait()
    return chat.answer


def test_what_is_typed_is_read_before_it_is_sent(chat: Chat, server: Running) -> None:
    with chat.page.expect_response(lambda response: read(CARD, finished=True)(response.request)):
        chat.field.press_sequentially(CARD, delay=5)
    until_read(server.engine)
    assert send(chat) == ANSWERS[CARD]
    usage = chat.stored()[0]["usage"]
    assert usage["cached"] == usage["prompt"] - 1


def test_the_conversation_is_read_when_its_answer_has_ended(chat: Chat) -> None:
    def goes_on(request: Request) -> bool:
        return is_reading(request) and texts(request) == [CARD, ANSWERS[CARD], ""]

    def texts(request: Request) -> list[str]:
        body: Any = request.post_data_json
        return [message["content"] for message in body["messages"]]

    with chat.page.expect_request(goes_on):
        chat.ask(CARD)


def test_what_an_input_method_converts_is_read_but_not_taken_for_all(chat: Chat) -> None:
    bodies: list[Any] = []
    chat.page.on("request", lambda request: bodies.append(request.post_data_json) if is_reading(request) else None)
    chat.page.clock.install()
    ime = compose(chat, "にほんのしゅと")
    with chat.page.expect_request(read("にほんのしゅと", finished=False)):
        chat.page.clock.run_for(5_000)
    assert not any(body["finished"] for body in bodies)
    ime.send("Input.insertText", {"text": "日本の首都"})
    with chat.page.expect_request(read("日本の首都", finished=True)):
        chat.page.clock.run_for(5_000)


def test_a_server_that_does_not_read_ahead_is_not_asked(browser: Browser) -> None:
    with engine_of(n_parallel=1) as engine, serving(engine) as server, visiting(browser, server.url) as chat:
        expect(chat.page.locator("#model")).to_be_visible()
        chat.page.clock.install()
        chat.field.press_sequentially(HELLO)
        chat.page.clock.run_for(5_000)
        assert send(chat) == ANSWERS[HELLO]
        assert not any(url.endswith("/v1/read_ahead") for url in chat.requests)


def test_where_it_fails_nobody_is_told(chat: Chat) -> None:
    chat.page.route("**/v1/read_ahead", lambda route: route.fulfill(status=500, json={}))
    with chat.page.expect_response(lambda response: read(HELLO, finished=True)(response.request)):
        chat.field.press_sequentially(HELLO, delay=5)
    assert send(chat) == ANSWERS[HELLO]
    assert chat.notices.count() == 0
    chat.forgive("500")
