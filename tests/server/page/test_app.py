"""The page as an app's: from nothing to an answer, another model, several tabs, and its end."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Locator, expect

from tests.server.apps import Browser, InProcess, in_process, load_on_one_thread, started
from tests.server.page.browser import Chat, tab, visiting
from tests.server.page.test_access import CONTRAST, CONTROLS, accessible
from tests.server.support import until
from tests.support.damaged_gguf import Changed, Value, write_changed
from tests.support.engines import PAIRS, PATIENCE
from weblab_local.engine.engine import Engine
from weblab_local.models.store import demo_model, import_model

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
CAPITAL = "日本の首都はどこですか？"
DEMO = "Try the demo model"


@pytest.fixture
def app() -> Iterator[InProcess]:
    """An app's server without a model."""
    with in_process() as app:
        yield app


def entrance(app: InProcess) -> str:
    return f"/#ticket={app.desktop.tickets.issue()}"


def dialog(chat: Chat) -> Locator:
    return chat.page.get_by_role("dialog", name="Choose a model")


def offer(chat: Chat, name: str) -> Locator:
    return dialog(chat).get_by_role("button").filter(has_text=name)


def load_path(chat: Chat, path: str) -> None:
    dialog(chat).get_by_label("A GGUF file").fill(path)
    dialog(chat).get_by_role("button", name="Load", exact=True).click()


def test_from_nothing_to_an_answer_and_to_the_end(browser: Chromium, tmp_path: Path) -> None:
    opened = Browser(tmp_path)
    with started("--close-after", "0.3", BROWSER=str(opened.program)) as app:
        (address,) = opened.opened(1)
        with visiting(browser, app.url, path=address.removeprefix(app.url)) as chat:
            expect(chat.button("No model is loaded")).to_be_visible()
            offer(chat, DEMO).click()
            expect(dialog(chat)).to_be_hidden()
            assert chat.ask(CAPITAL) == ANSWERS[CAPITAL]
            expect(chat.page.locator("#model")).to_contain_text(demo_model().stem)

            assert chat.page.url == f"{app.url}/"
            assert app.key not in chat.page.evaluate("JSON.stringify(localStorage)") + "".join(chat.requests) + address
            assert app.process.poll() is None
        _stdout, stderr = app.process.communicate(timeout=PATIENCE)
    assert (app.process.returncode, stderr) == (0, "")


def test_what_cannot_be_loaded_is_explained(browser: Chromium, app: InProcess, tmp_path: Path) -> None:
    write_changed(demo_model(), tmp_path / "other.gguf", [Changed("general.architecture", Value("str", "llama"))])
    (tmp_path / "damaged.gguf").write_bytes(demo_model().read_bytes()[:100_000])
    good = tmp_path / "デモ モデル.gguf"
    shutil.copy(demo_model(), good)
    with visiting(browser, app.url, path=entrance(app)) as chat:
        alert = dialog(chat).get_by_role("alert")
        expect(alert).to_be_hidden()
        for name, said in {"nothing": "There is no model called", "other": "llama", "damaged": "damaged.gguf"}.items():
            load_path(chat, str(tmp_path / f"{name}.gguf"))
            expect(alert).to_contain_text("It could not be loaded")
            expect(alert).to_contain_text(said)

        load_path(chat, f'"{good}"')
        expect(dialog(chat)).to_be_hidden()
        expect(chat.page.locator("#model")).to_contain_text(good.stem)
        assert chat.ask(CAPITAL) == ANSWERS[CAPITAL]


def test_how_far_a_model_is_loaded(browser: Chromium) -> None:
    may_go_on = threading.Event()

    def load(path: str, on_progress: Callable[[float], None]) -> Engine:
        on_progress(0.4)
        assert may_go_on.wait(PATIENCE)
        return load_on_one_thread(path, on_progress)

    with in_process(load) as app, visiting(browser, app.url, path=entrance(app)) as chat:
        offer(chat, DEMO).click()
        progress = dialog(chat).get_by_role("progressbar")
        expect(progress).to_have_js_property("value", 0.4)
        expect(dialog(chat)).to_contain_text("Loading demo")
        expect(offer(chat, DEMO)).to_be_disabled()

        chat.page.reload()  # it is still being loaded
        expect(progress).to_have_js_property("value", 0.4)
        may_go_on.set()
        expect(dialog(chat)).to_be_hidden()
        assert chat.ask(CAPITAL) == ANSWERS[CAPITAL]


def test_another_model_of_the_store(browser: Chromium, app: InProcess, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copy(demo_model(), tmp_path / f"{name}.gguf")
        import_model(tmp_path / f"{name}.gguf")
    with visiting(browser, app.url, path=entrance(app)) as chat:
        offer(chat, "first").click()
        expect(dialog(chat)).to_be_hidden()
        chat.ask(CAPITAL)

        chat.page.locator("#model").click()
        chat.button("Use another model").click()
        expect(dialog(chat).get_by_role("listitem")).to_contain_text(["first", "second", DEMO])
        offer(chat, "second").click()

        expect(chat.page.locator("#model")).to_contain_text("second")
        assert chat.ask(CAPITAL) == ANSWERS[CAPITAL]
        assert [message["model"] for message in chat.stored()[0]["messages"] if message["role"] == "assistant"] == [
            "first",
            "second",
        ]


def test_a_question_without_a_model_is_kept(browser: Chromium, app: InProcess) -> None:
    with visiting(browser, app.url, path=entrance(app)) as chat:
        dialog(chat).get_by_role("button", name="Close").click()
        chat.begin(CAPITAL)
        expect(chat.answers.last).to_contain_text("No model is loaded")
        offer(chat, DEMO).click()
        expect(dialog(chat)).to_be_hidden()
        chat.button("Try again").click()
        expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[CAPITAL])
        chat.forgive("503")


def test_it_speaks_japanese(browser: Chromium, app: InProcess) -> None:
    with visiting(browser, app.url, path=entrance(app), locale="ja-JP") as chat:
        choice = chat.page.get_by_role("dialog", name="モデルを選ぶ")
        choice.get_by_label("GGUF ファイルの場所").fill("/ない")
        choice.get_by_role("button", name="読み込む", exact=True).click()
        expect(choice.get_by_role("alert")).to_contain_text("読み込めませんでした")
        expect(choice.get_by_role("alert")).to_contain_text("というモデルは")  # the server's own words
        choice.get_by_role("button").filter(has_text="デモモデルを試す").click()
        expect(choice).to_be_hidden()
        assert chat.ask(CAPITAL) == ANSWERS[CAPITAL]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_choice_can_be_read_by_everybody(browser: Chromium, app: InProcess, scheme: str) -> None:
    options: Any = {"color_scheme": scheme, "reduced_motion": "reduce", "viewport": {"width": 390, "height": 844}}
    with visiting(browser, app.url, path=entrance(app), **options) as chat:
        load_path(chat, "/" + "x" * 100)
        expect(dialog(chat).get_by_role("alert")).to_be_visible()
        measured, poor = chat.page.evaluate(CONTRAST)
        assert (measured >= 8, poor) == (True, [])
        assert [node for node in accessible(chat.page) if node["role"] in CONTROLS and not node["name"].strip()] == []
        assert dialog(chat).evaluate("(dialog) => dialog.scrollWidth <= dialog.clientWidth")
        assert chat.page.evaluate("document.documentElement.scrollWidth") == 390

        chat.page.reload()
        expect(offer(chat, DEMO)).to_be_focused()
        chat.page.keyboard.press("Enter")
        expect(dialog(chat)).to_be_hidden()


def test_all_tabs_are_one_connection_which_the_next_takes_over(browser: Chromium, app: InProcess) -> None:
    presence = f"{app.url}/v1/app/presence"
    app.choose("demo")
    with visiting(browser, app.url, path=entrance(app)) as first:
        until(lambda: app.desktop.presence.n_pages == 1)
        with tab(first.page.context, app.url, entrance(app)) as second:
            assert second.ask(CAPITAL) == ANSWERS[CAPITAL]
            assert (presence in first.requests, presence in second.requests) == (True, False)
            with second.page.expect_request(presence):
                first.page.close()
            second.page.reload()
            assert second.ask(CAPITAL) == ANSWERS[CAPITAL]
            until(lambda: app.desktop.presence.n_pages == 1)
    until(lambda: app.desktop.presence.n_pages == 0)


def test_a_page_that_the_browser_puts_to_sleep_is_still_open(browser: Chromium, app: InProcess) -> None:
    app.choose("demo")
    with visiting(browser, app.url, path=entrance(app)) as chat:
        until(lambda: app.desktop.presence.n_pages == 1)
        page = chat.page.context.new_cdp_session(chat.page)
        page.send("Page.setWebLifecycleState", {"state": "frozen"})
        assert app.choose("demo")["state"] == "loaded"
        assert app.desktop.presence.n_pages == 1
        page.send("Page.setWebLifecycleState", {"state": "active"})
        assert chat.ask(CAPITAL) == ANSWERS[CAPITAL]


def test_a_page_that_outlives_the_app_says_so_and_one_of_an_earlier_start_too(browser: Chromium) -> None:
    with started("--no-browser", "--model", "demo") as app:
        context = browser.new_context(locale="en-US")
        chat = Chat(context.new_page(), app.url)
        chat.page.goto(f"{app.url}/#key={app.key}")
        expect(chat.page.locator("#model")).to_contain_text(demo_model().stem)
        app.process.terminate()
        app.process.wait(PATIENCE)
    expect(chat.button("weblab-local has ended")).to_be_visible()
    chat.begin(CAPITAL)
    expect(chat.answers.last).to_contain_text("Start it again. What you wrote is kept.")

    with started("--no-browser", "--model", "demo") as again:
        assert again.port == app.port
        chat.page.reload()
        expect(chat.button("This page is left from an earlier start")).to_be_visible()
        expect(chat.page.get_by_role("dialog")).to_be_hidden()
        chat.page.goto(f"{again.url}/#key={again.key}")
        expect(chat.page.locator("#model")).to_contain_text(demo_model().stem)
        expect(chat.messages.first.locator(".body")).to_have_text(CAPITAL)
        chat.button("Try again").click()
        expect(chat.answers.last).to_contain_text("東京")
        context.close()
