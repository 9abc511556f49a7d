"""Two languages, two themes, a phone's width."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import weblab_local.server
from tests.server.page.browser import conversation
from tests.server.page.conftest import Visit
from tests.support.engines import PAIRS

FILES = Path(weblab_local.server.__file__).parent / "page"
ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
CARD = "大規模言語モデルについて説明してください。"
CODE = "FizzBuzzをPythonで書いて。"
JAPANESE = re.compile("[ぁ-ヿ一-鿿]")


def messages(page: Page) -> Mapping[str, Mapping[str, str | Mapping[str, str]]]:
    """The texts of both languages, from i18n.js."""
    found: Mapping[str, Mapping[str, str]] = page.evaluate("import('/page/i18n.js').then((m) => m.MESSAGES)")
    return found


def is_dark(page: Page) -> bool:
    """Whether the page is darker than its letters."""
    paper, ink = page.evaluate(
        "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    return int(sum(paper)) < int(sum(ink))


def test_both_languages_say_the_same_things(visit: Visit) -> None:
    texts = messages(visit().page)

    assert set(texts) == {"ja", "en"}
    assert list(texts["ja"]) == list(texts["en"])
    for key in texts["ja"]:
        places = [sorted(set(re.findall(r"\{\w+\}", str(texts[language][key])))) for language in ("ja", "en")]
        assert places[0] == places[1], key
        assert JAPANESE.search(str(texts["ja"][key])) or key in ("topP", "topK", "minP"), key
        assert not JAPANESE.search(str(texts["en"][key])), key
        assert str(texts["ja"][key]).encode("cp932")


def test_every_text_is_used(visit: Visit) -> None:
    keys = set(messages(visit().page)["en"])
    sources = "".join(
        file.read_text(encoding="utf-8")
        for file in FILES.iterdir()
        if file.suffix in (".js", ".html") and file.name != "i18n.js"
    )
    words = set(re.findall(r"[\"'](\w+)[\"']", sources))
    hints = {f"{field}Hint" for field in re.findall(r'text: "(\w+)"', sources)}

    assert keys - words - hints == set()
    named = set(re.findall(r'\bt\("(\w+)"', sources)) | set(re.findall(r'data-t(?:-\w+)?="(\w+)"', sources)) | hints
    assert named - keys == set()


@pytest.mark.parametrize(("locale", "language"), [("ja-JP", "ja"), ("en-GB", "en"), ("fr-FR", "en")])
def test_the_browsers_language_is_spoken(visit: Visit, locale: str, language: str) -> None:
    chat = visit(locale=locale)

    expect(chat.page.locator("html")).to_have_attribute("lang", language)
    expect(chat.button({"ja": "新しい会話", "en": "New conversation"}[language])).to_be_visible()


def test_the_language_can_be_switched_and_stays(visit: Visit) -> None:
    chat = visit(stored=conversation("Greeting", "Say hello.", "Hello!"))
    chat.conversations.first.click()

    chat.page.get_by_role("radio", name="日本語").check()

    expect(chat.page.locator("html")).to_have_attribute("lang", "ja")
    expect(chat.field).to_have_attribute("placeholder", "メッセージを入力")
    expect(chat.answers.first).to_have_attribute("aria-label", "回答")
    expect(chat.button("もう一度生成")).to_be_visible()
    chat.page.reload()
    expect(chat.button("生成の設定")).to_be_visible()
    chat.page.get_by_role("radio", name="English").check()
    expect(chat.button("Generation settings")).to_be_visible()


def test_texts_are_marked_with_their_own_language(visit: Visit) -> None:
    chat = visit(stored=conversation("Both", CARD, ANSWERS[CARD], "Say hello.", "Hello!"))
    chat.conversations.first.click()

    assert chat.page.locator("article .body").evaluate_all("(all) => all.map((each) => each.lang)") == [
        *("ja", "ja"),
        *("en", "en"),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_system_chooses_the_colours_unless_somebody_did(visit: Visit, scheme: str) -> None:
    chat = visit(color_scheme=scheme)
    other = {"light": "Dark", "dark": "Light"}[scheme]
    assert is_dark(chat.page) == (scheme == "dark")

    chat.page.get_by_role("radio", name=other).check()
    assert is_dark(chat.page) == (other == "Dark")
    chat.page.reload()
    assert is_dark(chat.page) == (other == "Dark")
    expect(chat.page.get_by_role("radio", name=other)).to_be_checked()
    chat.page.get_by_role("radio", name="As the system").check()
    assert is_dark(chat.page) == (scheme == "dark")


@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
def test_a_phone_shows_all_without_scrolling_sideways(visit: Visit, locale: str) -> None:
    long_word = "x" * 300
    texts = (CARD, ANSWERS[CARD], CODE, f"{ANSWERS[CODE]}\n{long_word}\n```\n{long_word}\n```", long_word, long_word)
    chat = visit(
        locale=locale,
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        stored=conversation(long_word, *texts, contextStart="m2"),
    )
    page = chat.page

    def check() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("#scroller").evaluate("(area) => area.scrollWidth <= area.clientWidth")

    check()
    opener = page.locator("#open-sidebar")
    opener.tap()
    expect(page.locator("#close-sidebar")).to_be_focused()
    expect(page.locator("#column")).to_have_js_property("inert", True)
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    expect(page.get_by_role("navigation")).to_be_hidden()
    opener.tap()
    chat.conversations.first.tap()
    expect(chat.messages).to_have_count(6)
    check()
    for name in ("open-settings", "open-shortcuts"):
        opener.tap()
        page.locator(f"#{name}").tap()
        dialog = page.get_by_role("dialog")
        box = dialog.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert dialog.evaluate("(dialog) => dialog.scrollWidth <= dialog.clientWidth")
        page.keyboard.press("Escape")
        page.locator("#close-sidebar").tap()


def test_enter_is_a_new_line_where_a_finger_is_all_there_is(visit: Visit) -> None:
    chat = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    chat.field.tap()
    chat.page.keyboard.type("one")
    chat.page.keyboard.press("Enter")
    chat.page.keyboard.type("two")
    expect(chat.field).to_have_value("one\ntwo")

    chat.button("Send").tap()

    expect(chat.messages.first.locator(".body")).to_have_text("one\ntwo", use_inner_text=True)
    chat.wait()
