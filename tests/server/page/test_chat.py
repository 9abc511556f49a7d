"""Talking on the page: answers as they come, stopping, asking again, the context, the settings."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.page.browser import GREEDY, Chat, conversation
from tests.server.page.conftest import Visit
from tests.server.support import Running, until
from tests.support.engines import LONG_ANSWERS, PAIRS, hold
from weblab_local import SamplingParams

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
CARD = "大規模言語モデルについて説明してください。"
HELLO = "Say hello."
TOO_LONG = "長い話です。" * 600
OBSERVE = """(selector) => {
    window.seen = [];
    new MutationObserver(() => {
        const text = document.querySelector(selector)?.textContent;
        if (text && text !== window.seen.at(-1)) window.seen.push(text);
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""

LENGTH_AND_PLACE = """async (area) => {
    for (let i = 0; i < 3; i += 1) await new Promise(requestAnimationFrame);  // messages get their real height
    window.watched ??= [...document.querySelectorAll("article")].find((each) => each.getBoundingClientRect().top > 300);
    return [document.querySelector("#messages").textContent.length, window.watched.getBoundingClientRect().top];
}"""


def test_an_answer_comes_bit_by_bit(chat: Chat) -> None:
    chat.page.evaluate(OBSERVE, "article.assistant .text")
    chat.slow_line(20_000)

    assert chat.ask(CARD) == ANSWERS[CARD]

    seen = chat.page.evaluate("window.seen")
    assert len(seen) > 1
    assert all(ANSWERS[CARD].startswith(text) for text in seen)


def test_the_server_says_how_fast_it_was_and_what_the_context_holds(chat: Chat, server: Running) -> None:
    chat.ask(CARD)

    (body,) = chat.bodies
    options = {name: body[name] for name in ("messages", "temperature", "max_tokens")}
    usage = server.client.chat.completions.create(model="default", **options).usage
    assert usage is not None
    expect(chat.button(f"Context: {usage.total_tokens} of 2,048 tokens")).to_be_visible()
    stats = chat.answers.last.locator(".stats")
    expect(stats).to_contain_text(f"{usage.completion_tokens} tokens")
    expect(stats).to_contain_text("tokens/s")
    expect(stats).to_contain_text("first token after")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_can_be_stopped(chat: Chat, way: str) -> None:
    chat.endless()
    chat.begin(CARD)
    expect(chat.answers.last.locator(".text")).to_be_visible()

    if way == "button":
        chat.button("Stop").click()
    else:
        chat.page.keyboard.press(way)

    expect(chat.answers.last).to_contain_text("Stopped")
    expect(chat.field).to_be_focused()
    (stored,) = chat.stored()
    assert stored["messages"][1]["content"].strip() == chat.answer
    assert stored["messages"][1]["finish"] == "stopped"


def test_a_stream_that_says_nothing_for_long_is_waited_for(chat: Chat, server: Running, comments: list[bytes]) -> None:
    gate, held = hold(server.engine)
    with chat.page.expect_response("**/v1/chat/completions") as response:
        chat.begin(HELLO)
    assert response.value.status == 200, "before the first token"
    until(lambda: len(comments) > 1)
    gate.open()
    list(held)
    chat.wait()
    assert chat.answer == ANSWERS[HELLO]


def test_an_answer_is_made_again(chat: Chat) -> None:
    chat.ask(CARD)

    chat.button("Answer again").click()
    chat.wait()

    expect(chat.messages).to_have_count(2)
    assert chat.answer == ANSWERS[CARD]
    first, second = chat.bodies
    assert first == second


def test_editing_cuts_the_conversation_and_can_be_taken_back(chat: Chat) -> None:
    chat.ask(CARD)
    chat.ask("俳句を一つ作ってください。")

    chat.messages.first.hover()
    chat.messages.first.get_by_role("button", name="Edit").click()
    editor = chat.page.get_by_label("Edit the message")
    expect(editor).to_be_focused()
    editor.fill(HELLO)
    editor.press("Enter")
    chat.wait()

    expect(chat.messages).to_have_count(2)
    assert chat.answer == ANSWERS[HELLO]
    assert chat.bodies[-1]["messages"] == [{"role": "user", "content": HELLO}]
    chat.notices.get_by_role("button", name="Undo").click()
    expect(chat.messages).to_have_count(4)
    expect(chat.messages.first).to_contain_text(CARD)
    assert len(chat.stored()[0]["messages"]) == 4


def test_an_edited_message_waits_for_the_answer_that_is_on_its_way(chat: Chat) -> None:
    chat.ask(CARD)
    chat.messages.first.hover()
    chat.messages.first.get_by_role("button", name="Edit").click()
    editor = chat.page.get_by_label("Edit the message")
    editor.fill(HELLO)
    chat.endless()
    chat.begin("俳句を一つ作ってください。")

    expect(chat.page.locator("form.edit").get_by_role("button", name="Send")).to_be_disabled()
    editor.press("Enter")

    expect(chat.messages).to_have_count(4)
    assert len(chat.bodies) == 2
    chat.button("Stop").click()
    expect(chat.answers.last).to_contain_text("Stopped")
    chat.page.unroute_all()
    chat.slow_line(-1)
    editor.press("Enter")
    expect(chat.messages).to_have_count(2)
    chat.wait()
    assert chat.answer == ANSWERS[HELLO]


def test_a_conversation_of_any_number_of_turns_goes_on(visit: Visit) -> None:
    texts = [text for n in range(1100) for text in (f"Question {n}", f"Answer {n}")]
    settings = GREEDY | {"system": "短く答えてください。"}
    chat = visit(stored={"settings": settings, **conversation("Thousands", *texts)})
    chat.conversations.first.click()

    assert chat.ask(HELLO)

    expect(chat.page.locator(".failure")).to_have_count(0)
    sent = [message["content"] for message in chat.bodies[-1]["messages"]]
    n_sent = len(sent) - 2
    assert sent == [settings["system"], *texts[-n_sent:], HELLO]
    assert n_sent > 2000


def test_the_whole_conversation_is_sent_each_time(chat: Chat) -> None:
    first = chat.ask(CARD)
    chat.ask(HELLO)

    roles = [(message["role"], message["content"]) for message in chat.bodies[-1]["messages"]]
    assert roles == [("user", CARD), ("assistant", first), ("user", HELLO)]


def test_the_prompts_reading_is_shown(chat: Chat) -> None:
    chat.page.evaluate(OBSERVE, ".reading")

    chat.ask(" ".join(pair.response for pair in LONG_ANSWERS[:8]))

    seen = chat.page.evaluate("window.seen")
    assert any("Reading the prompt" in text for text in seen)


def test_what_the_context_no_longer_holds_is_marked(visit: Visit, server: Running) -> None:
    pairs = LONG_ANSWERS[:40]
    texts = [text for pair in pairs for text in (pair.instruction, pair.response)]
    chat = visit(stored=conversation("Long", *texts))
    chat.conversations.first.click()

    chat.ask(HELLO)

    body = {name: value for name, value in chat.bodies[-1].items() if not name.startswith("stream")}
    with server.http as http:
        dropped = http.post("/v1/chat/completions", json=body).json()["weblab"]["dropped_messages"]
    assert 0 < dropped < len(texts)
    edge = chat.page.locator(".context-edge")
    expect(edge).to_have_text(f"The {dropped} messages above no longer fit the context; the model does not see them")
    expect(chat.page.locator("article.outside")).to_have_count(dropped)
    assert edge.evaluate("(edge) => [...edge.parentElement.children].indexOf(edge)") == dropped
    expect(chat.messages.first).to_have_attribute("aria-label", "You (outside the context)")


def test_a_message_that_does_not_fit_is_explained(chat: Chat, server: Running) -> None:
    chat.ask(TOO_LONG)

    with server.http as http:
        said = http.post("/v1/chat/completions", json=chat.bodies[-1]).json()["error"]["message"]
    failure = chat.answers.last
    expect(failure).to_contain_text("The message is too long")
    expect(failure).to_contain_text(said)
    failure.get_by_role("button", name="Open the settings").click()
    expect(chat.page.get_by_role("dialog", name="Generation settings")).to_be_visible()
    chat.forgive("400")


def test_a_question_without_an_answer_is_not_sent_again(chat: Chat) -> None:
    chat.ask(TOO_LONG)
    chat.ask(HELLO)

    assert chat.bodies[-1]["messages"] == [{"role": "user", "content": HELLO}]
    chat.forgive("400")


def test_the_settings_reach_the_server(chat: Chat) -> None:
    chat.button("Generation settings").click()
    dialog = chat.page.get_by_role("dialog")
    wanted: dict[str, Any] = {
        "Temperature": 0.35,
        "Top-p": 0.5,
        "Top-k": 7,
        "Min-p": 0.1,
        "Repeat penalty": 1.15,
        "Longest answer": 33,
        "Seed": 4,
    }
    for name, value in wanted.items():
        dialog.get_by_role("spinbutton", name=name).fill(str(value))
    dialog.get_by_label("System message").fill("短く答えてください。")
    dialog.get_by_label("Stop strings").fill("終わり\n\\n\\n")
    chat.page.keyboard.press("Escape")
    chat.page.reload()
    chat.ask(HELLO)

    body = chat.bodies[-1]
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed")
    assert [body[name] for name in names] == list(wanted.values())
    assert body["stop"] == ["終わり", "\n\n"]
    assert body["messages"][0] == {"role": "system", "content": "短く答えてください。"}


def test_without_a_choice_the_settings_are_the_packages_own(visit: Visit) -> None:
    chat = visit(stored={"settings": "not even JSON"})
    chat.ask(HELLO)

    params = SamplingParams()
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens")
    body = chat.bodies[-1]
    assert {name: body[name] for name in names} == {name: getattr(params, name) for name in names}
    assert not {"seed", "stop"} & set(body)
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_settings_out_of_range_are_brought_into_it_and_can_be_reset(chat: Chat) -> None:
    chat.button("Generation settings").click()
    dialog = chat.page.get_by_role("dialog")
    top_p = dialog.get_by_role("spinbutton", name="Top-p")
    top_p.fill("7")
    top_p.blur()
    expect(top_p).to_have_value("1")
    dialog.get_by_role("slider", name="Temperature").fill("1.5")
    expect(dialog.get_by_role("spinbutton", name="Temperature")).to_have_value("1.5")

    chat.button("Reset to defaults").click()

    expect(top_p).to_have_value("0.95")
    chat.button("Undo").click()
    expect(top_p).to_have_value("1")


def test_code_is_set_apart_and_copied_alone(visit: Visit) -> None:
    chat = visit(permissions=["clipboard-read", "clipboard-write"])
    question = "FizzBuzzをPythonで書いて。"
    chat.ask(question)

    code = ANSWERS[question].removeprefix("```python\n").removesuffix("\n```")
    expect(chat.answers.last.locator("pre")).to_have_text(code, use_inner_text=True)
    chat.button("Copy the code").click()
    expect(chat.notices).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == code
    chat.answers.last.get_by_role("button", name="Copy", exact=True).click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == ANSWERS[question]


def test_markup_stays_text(visit: Visit) -> None:
    markup = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
    chat = visit(stored=conversation(markup, markup, f"{markup}\n```{markup}\n{markup}\n```"))
    chat.conversations.first.click()

    expect(chat.conversations.first).to_have_text(markup)
    expect(chat.page.locator("h1")).to_have_text(markup)
    expect(chat.messages.first.locator(".body")).to_have_text(markup)
    expect(chat.answers.first.locator(".text").first).to_contain_text(markup)
    chat.ask(markup)
    expect(chat.messages.nth(2).locator(".body")).to_have_text(markup)
    assert chat.page.evaluate("window.hit") is None
    assert chat.page.locator("main img, main script, nav img, nav script").count() == 0


def test_the_view_follows_only_who_is_at_the_end(visit: Visit) -> None:
    texts = [text for pair in PAIRS[:200] for text in (pair.instruction, pair.response)]
    chat = visit(stored=conversation("Hundreds", *texts))
    chat.endless(max_tokens=600, bytes_per_second=10_000)
    chat.conversations.first.click()
    scroller = chat.page.locator("#scroller")
    at_end = "(area) => area.scrollHeight - area.scrollTop - area.clientHeight < 2"
    until(lambda: scroller.evaluate(at_end))  # the page's policy forbids what wait_for_function does

    chat.begin(HELLO)
    expect(chat.answers.last.locator(".text")).to_be_visible()
    scroller.evaluate("(area) => area.scrollTo(0, area.scrollHeight / 2)")
    jump = chat.button("To the end")
    expect(jump).to_be_visible()
    length, place = scroller.evaluate(LENGTH_AND_PLACE)
    until(lambda: scroller.evaluate(LENGTH_AND_PLACE)[0] > length)
    assert scroller.evaluate(LENGTH_AND_PLACE)[1] == pytest.approx(place, abs=1)
    jump.click()
    expect(jump).to_be_hidden()
    chat.button("Stop").click()
    chat.wait()
    until(lambda: scroller.evaluate(at_end))
