"""Open WebUI in a real browser: it finds the model, chats, is stopped, answers again, and asks for a title beside."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.clients.environments import OPEN_WEBUI as CLIENT  # noqa: F401
from tests.clients.support import ANSWER, KEY, PATIENCE, QUESTION, Server, started, until

CHROMIUM = shutil.which("chromium")
TITLE_PROMPT, TITLE = "本の情報をJSONで表す例をください。", "坊っちゃん"
"""A question that the demo answers with an object that has a title, which is what Open WebUI's own prompt asks for."""

SETTINGS = {
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": KEY,
    "OFFLINE_MODE": "True",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ENABLE_OLLAMA_API": "False",
    "ENABLE_TAGS_GENERATION": "False",
    "ENABLE_FOLLOW_UP_GENERATION": "False",
    "TITLE_GENERATION_PROMPT_TEMPLATE": TITLE_PROMPT,
    "DEFAULT_MODEL_PARAMS": '{"temperature": 0}',
    "OPENAI_API_KEY": KEY,
}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


class Chat(NamedTuple):
    """A tab with it, and what it asks."""

    page: Page
    server: Server
    hold: Path
    """While there is this file, a stream goes no further than its tenth event."""

    @property
    def answers(self) -> Locator:
        return self.page.locator(".chat-assistant")

    def ask(self) -> None:
        self.page.locator("#chat-input").click()
        self.page.keyboard.insert_text(QUESTION)
        self.page.keyboard.press("Enter")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def answered(self) -> list[int]:
        return self.server.statuses("/v1/chat/completions")


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory, hold: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with started(home, "tests.clients.altered", "held", WEBLAB_TEST_HOLD=str(hold)) as running:
        yield running


@pytest.fixture(scope="module")
def open_webui(holding: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, once it answers. It has no port of its own choosing."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp("open-webui")
    program = shutil.which("open-webui", path=str(Path(sys.executable).parent))
    with (data / "log").open("w") as log:
        process = subprocess.Popen(
            [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=data,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | SETTINGS | {"DATA_DIR": str(data), "OPENAI_API_BASE_URL": holding.v1},
        )
    try:
        until(lambda: reachable(port) or process.poll() is not None)
        assert process.poll() is None, (data / "log").read_text(encoding="utf-8")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def reachable(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def page(open_webui: str) -> Iterator[Page]:
    """Its page, with the greeting out of the way."""
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(locale="en-US")
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(open_webui)
        page.get_by_role("button", name="Okay, Let's Go!").click()
        yield page
        browser.close()


@pytest.fixture
def chat(page: Page, open_webui: str, holding: Server, hold: Path) -> Chat:
    """A new conversation."""
    page.goto(open_webui)
    return Chat(page, holding, hold)


@pytest.mark.way("models")
def test_it_finds_the_model(chat: Chat) -> None:
    expect(chat.button("Selected model: weblab-demo-instruction-sft-Q8_0")).to_be_visible()
    assert {*chat.server.statuses("/v1/models")} == {200}


@pytest.mark.way("chat")
def test_streamed(chat: Chat) -> None:
    chat.hold.touch()
    chat.ask()
    expect(chat.answers).not_to_have_text("")
    assert ANSWER.startswith(chat.answers.inner_text().strip())
    chat.hold.unlink()
    expect(chat.answers).to_have_text(ANSWER)


@pytest.mark.way("title")
def test_it_asks_for_a_title_beside_the_answer(chat: Chat) -> None:
    chat.hold.touch()
    chat.ask()
    expect(chat.page).to_have_title(f"{TITLE} / Open WebUI")
    expect(chat.button("Stop")).to_be_visible()
    chat.hold.unlink()
    expect(chat.answers).to_have_text(ANSWER)
    assert {*chat.answered} == {200}


@pytest.mark.way("stop")
def test_stopped(chat: Chat) -> None:
    chat.hold.touch()
    chat.ask()
    expect(chat.page).to_have_title(f"{TITLE} / Open WebUI")
    expect(chat.answers).not_to_have_text("")
    before = len(chat.answered)
    chat.button("Stop").click()
    until(lambda: len(chat.answered) > before)
    chat.hold.unlink()
    expect(chat.button("Regenerate")).to_be_visible()
    assert len(chat.answers.inner_text()) < len(ANSWER)


@pytest.mark.way("regenerate")
def test_regenerated(chat: Chat) -> None:
    chat.ask()
    expect(chat.answers).to_have_text(ANSWER)
    chat.button("Regenerate").click()
    chat.page.get_by_text("Try Again", exact=True).click()
    expect(chat.page.get_by_text("2/2", exact=True)).to_be_visible()
    expect(chat.answers).to_have_text(ANSWER)
    assert {*chat.answered} == {200}
