"""Keyboards, input methods, screen readers, low vision: the page without a mouse, and what it tells assistive tools."""

from collections.abc import Mapping
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.browser import Chat, conversation
from tests.server.page.conftest import Visit
from tests.support.engines import PAIRS

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
HELLO = "Say hello."
CODE = "Show me a nested loop in Python."
CONTROLS = {"button", "textbox", "slider", "spinbutton", "radio", "menuitem", "link", "progressbar", "combobox"}
CONTAINERS = {"dialog", "navigation", "region", "article", "menu", "group", "image"}

CONTRAST = """async () => {
    await Promise.allSettled(document.getAnimations().map((each) => each.finished));
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (colours) => {
        context.clearRect(0, 0, 1, 1);
        for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const poor = [];
    let measured = 0;
    const root = document.querySelector("dialog[open]") ?? document.body;
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility({ opacityProperty: true })) continue;
        if (element.closest(".visually-hidden, .skip, :disabled, [aria-disabled=true]")) continue;
        const behind = [];
        for (let each = element; each; each = each.parentElement) {
            behind.unshift(getComputedStyle(each).backgroundColor);
        }
        const style = getComputedStyle(element);
        const [a, b] = [luminance(paint(behind)), luminance(paint([...behind, style.color]))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const large = parseFloat(style.fontSize) >= 24;
        measured += 1;
        if (contrast < (large ? 3 : 4.5)) poor.push(walker.currentNode.data);
    }
    return [measured, poor];
}"""


def accessible(page: Page) -> list[Mapping[str, str]]:
    """Role and name of everything in the accessibility tree."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"]]
    return [{"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")} for node in shown]


def compose(chat: Chat, text: str) -> Any:
    """Begin a conversion in the field, as an input method does; what can end it."""
    chat.field.focus()
    ime = chat.page.context.new_cdp_session(chat.page)
    ime.send("Input.imeSetComposition", {"text": text, "selectionStart": len(text), "selectionEnd": len(text)})
    expect(chat.field).to_have_value(text)
    return ime


def test_enter_during_a_conversion_does_not_send(chat: Chat) -> None:
    chat.page.evaluate("""() => document.querySelector("#input").addEventListener("keydown", (event) => {
        window.key = [event.key, event.isComposing];
    })""")
    ime = compose(chat, "にほんのしゅと")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    ime.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    assert chat.page.evaluate("window.key") == ["Enter", True]
    ime.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key, "key": "Process", "windowsVirtualKeyCode": 229})
    ime.send("Input.insertText", {"text": "日本の首都はどこですか？"})

    expect(chat.field).to_have_value("日本の首都はどこですか？")
    expect(chat.messages).to_have_count(0)
    chat.field.press("Enter")
    chat.wait()
    assert chat.answer == ANSWERS["日本の首都はどこですか？"]


@pytest.mark.parametrize("key_code", [229, 13])
def test_enter_after_a_conversions_end_as_in_safari_does_not_send(chat: Chat, key_code: int) -> None:
    chat.field.fill("日本")
    chat.field.evaluate(
        """(field, keyCode) => {
            const options = { key: "Enter", keyCode, bubbles: true, cancelable: true };
            field.dispatchEvent(new CompositionEvent("compositionstart", { bubbles: true }));
            field.dispatchEvent(new CompositionEvent("compositionend", { bubbles: true, data: "日本" }));
            field.dispatchEvent(new KeyboardEvent("keydown", options));
        }""",
        key_code,
    )

    expect(chat.messages).to_have_count(0)
    expect(chat.field).to_have_value("日本")
    chat.field.press("Enter")
    expect(chat.messages).to_have_count(2)
    chat.wait()


def test_escape_during_a_conversion_does_not_stop_the_answer(chat: Chat) -> None:
    chat.endless()
    chat.begin(HELLO)
    ime = compose(chat, "ち")
    ime.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "Escape", "windowsVirtualKeyCode": 27})

    expect(chat.button("Stop")).to_be_visible()
    ime.send("Input.insertText", {"text": "地"})
    chat.page.keyboard.press("Escape")
    expect(chat.answers.last).to_contain_text("Stopped")


def test_shift_enter_begins_a_line(chat: Chat) -> None:
    chat.field.press_sequentially("one")
    chat.field.press("Shift+Enter")
    chat.field.press_sequentially("two")

    expect(chat.field).to_have_value("one\ntwo")
    expect(chat.messages).to_have_count(0)


def test_all_of_it_with_the_keyboard_alone(chat: Chat) -> None:
    expect(chat.page.locator("#budget")).to_be_visible()  # which it is when the page knows the model
    keyboard = chat.page.keyboard
    passed: list[str] = []
    while not passed or passed[-1] != "skip":
        keyboard.press("Shift+Tab")
        passed.append(chat.page.evaluate("document.activeElement.id"))
        assert len(passed) < 30
    assert {"new", "open-settings", "open-shortcuts", "budget", "scroller"} <= set(passed)
    keyboard.press("Enter")
    expect(chat.field).to_be_focused()
    keyboard.type(HELLO)
    keyboard.press("Enter")
    chat.wait()

    keyboard.press("ArrowUp")  # edits the last message
    editor = chat.page.get_by_label("Edit the message")
    expect(editor).to_be_focused()
    keyboard.press("Escape")
    expect(editor).to_be_hidden()
    keyboard.press("Control+Shift+O")
    expect(chat.messages).to_have_count(0)
    expect(chat.field).to_be_focused()
    keyboard.press("Alt+ArrowDown")
    expect(chat.messages).to_have_count(2)

    keyboard.press("Control+,")
    expect(chat.page.get_by_role("dialog", name="Generation settings")).to_be_visible()
    keyboard.press("Escape")
    expect(chat.field).to_be_focused()
    keyboard.press("Control+/")
    expect(chat.page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    keyboard.press("Escape")

    chat.button(f"Actions for “{HELLO}”").focus()
    keyboard.press("Enter")
    expect(chat.page.get_by_role("menuitem", name="Rename")).to_be_focused()
    keyboard.press("ArrowUp")
    expect(chat.page.get_by_role("menuitem", name="Delete")).to_be_focused()
    keyboard.press("Escape")
    expect(chat.button(f"Actions for “{HELLO}”")).to_be_focused()
    keyboard.press("Enter")
    keyboard.press("End")
    keyboard.press("Enter")
    expect(chat.page.get_by_text("No conversations yet")).to_be_visible()
    expect(chat.field).to_be_focused()


@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
def test_everything_has_a_name(visit: Visit, locale: str) -> None:
    chat = visit(locale=locale, stored=conversation("Greeting", HELLO, "Hello!", CODE, ANSWERS[CODE]))

    def check(least: int) -> None:
        nodes = [node for node in accessible(chat.page) if node["role"] in CONTROLS | CONTAINERS]
        assert [node for node in nodes if not node["name"].strip()] == []
        assert len(nodes) >= least

    check(20)
    chat.conversations.first.click()
    chat.messages.first.hover()
    check(30)
    chat.page.locator("#actions").click()
    check(5)
    chat.page.keyboard.press("Escape")
    for opener in ("open-settings", "open-shortcuts", "budget"):
        chat.page.locator(f"#{opener}").click()
        expect(chat.page.get_by_role("dialog")).to_be_visible()
        check(2)
        chat.page.keyboard.press("Escape")


def test_the_page_has_landmarks_and_one_heading_of_the_first_level(chat: Chat) -> None:
    chat.ask(HELLO)

    roles = [node["role"] for node in accessible(chat.page)]
    assert {"main", "navigation", "banner", "contentinfo"} <= set(roles)
    assert chat.page.get_by_role("heading", level=1).count() == 1


def test_a_screen_reader_hears_an_answer_once(chat: Chat) -> None:
    chat.page.evaluate("""() => {
        window.heard = [];
        const hear = () => window.heard.push(document.querySelector("#live").textContent);
        new MutationObserver(hear).observe(document.querySelector("#live"), { childList: true });
    }""")

    chat.ask("What is a large language model?")

    answer = ANSWERS["What is a large language model?"]
    assert chat.page.evaluate("window.heard") == ["Sent. Waiting for the answer.", f"Answer: {answer}"]
    live = "article [aria-live], article [role=status], #messages[aria-live], #messages[role=log]"
    assert chat.page.locator(live).count() == 0
    expect(chat.answers.last).to_have_attribute("aria-busy", "false")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit: Visit, scheme: str) -> None:
    texts = (HELLO, "Hello!", CODE, ANSWERS[CODE])
    chat = visit(
        color_scheme=scheme, stored=conversation("Greeting", *texts, contextStart="m2"), reduced_motion="reduce"
    )

    def check(least: int) -> None:
        measured, poor = chat.page.evaluate(CONTRAST)
        assert poor == []
        assert measured >= least

    check(10)
    chat.conversations.first.click()
    check(15)
    for opener, least in (("open-settings", 20), ("open-shortcuts", 15), ("budget", 8)):
        chat.page.locator(f"#{opener}").click()
        check(least)
        chat.page.keyboard.press("Escape")
    chat.page.context.set_offline(True)
    chat.begin(HELLO)
    expect(chat.button("Try again")).to_be_visible()
    check(20)
    chat.forgive("ERR_INTERNET_DISCONNECTED")


def test_who_wants_no_motion_gets_none(visit: Visit) -> None:
    chat = visit(reduced_motion="reduce")
    chat.endless()
    chat.begin(HELLO)
    expect(chat.answers.last.locator(".text")).to_be_visible()

    long = "document.getAnimations().filter((each) => each.effect.getComputedTiming().endTime > 10).length"
    assert chat.page.evaluate(long) == 0
    chat.button("Stop").click()
    chat.wait()
