"""Answers on several conversations and tabs: they take turns, and leave the browser connections for new pages."""

from playwright.sync_api import expect

from tests.server.page.browser import Chat, tab
from tests.server.page.conftest import Visit
from tests.support.engines import PAIRS

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
HELLO, JOKE = "Say hello.", "Tell me a joke."
WAITING = "Waiting for another answer to end"


def test_a_second_conversation_of_a_tab_waits_with_a_word(chat: Chat) -> None:
    chat.endless()
    chat.begin(HELLO)
    expect(chat.answers.last.locator(".body")).not_to_be_empty()
    chat.button("New conversation").click()
    chat.begin(JOKE)
    expect(chat.answers.last).to_contain_text(WAITING)
    chat.page.unroute("**/v1/chat/completions")
    chat.slow_line(-1)

    chat.conversations.filter(has_text=HELLO).click()
    chat.button("Stop").click()
    chat.conversations.filter(has_text=JOKE).click()
    chat.wait()
    assert chat.answer == ANSWERS[JOKE]


def test_one_that_waits_can_be_stopped_and_the_next_keeps_its_place(chat: Chat) -> None:
    chat.endless()
    chat.begin(HELLO)
    chat.button("New conversation").click()
    chat.begin(JOKE)
    expect(chat.answers.last).to_contain_text(WAITING)
    chat.button("Stop").click()
    expect(chat.answers.last).to_contain_text("Stopped")
    chat.button("New conversation").click()
    chat.begin(JOKE)
    expect(chat.answers.last).to_contain_text(WAITING)


def test_however_many_tabs_stream_the_next_one_loads(visit: Visit) -> None:
    first = visit()
    context, url = first.page.context, first.url
    tabs = [Chat(context.new_page(), url) for _ in range(7)]
    for each in tabs:
        each.page.goto(url)
        each.endless(bytes_per_second=5_000)
        each.begin(HELLO)
    expect(tabs[-1].answers.last).to_contain_text(WAITING)
    with tab(context, url) as late:
        expect(late.page.locator("#model")).to_be_visible()
    for each in tabs:
        each.page.close()
