"""The page in a real browser, as a person uses it; it fails when the page complains or asks elsewhere for anything."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.support.engines import PATIENCE

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
GREEDY = {"temperature": 0, "max_tokens": 200}

Stored = Mapping[str, object]
"""What the browser remembers from an earlier visit, by its name in localStorage without the prefix."""


class Chat:
    """A tab with the page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        """What was sent to the chat endpoint."""
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._note(request.url, request.post_data))

    def _note(self, url: str, body: str | None) -> None:
        self.requests.append(url)
        if url.endswith("/v1/chat/completions") and body is not None:
            self.bodies.append(json.loads(body))

    def forgive(self, part: str) -> None:
        """Take back complaints that belong to what was tested."""
        assert any(part in complaint for complaint in self.complaints)
        self.complaints = [complaint for complaint in self.complaints if part not in complaint]

    @property
    def field(self) -> Locator:
        return self.page.locator("#input")

    @property
    def messages(self) -> Locator:
        return self.page.locator("article")

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant")

    @property
    def notices(self) -> Locator:
        return self.page.locator(".notice")

    @property
    def conversations(self) -> Locator:
        return self.page.locator("#conversations .open")

    def button(self, name: str) -> Locator:
        """A button by what a screen reader calls it."""
        return self.page.get_by_role("button", name=name, exact=True)

    def begin(self, text: str) -> None:
        """Send a message, and wait until its answer is on the way. Another tab may add answers meanwhile."""
        n_answers = self.answers.count()
        self.field.fill(text)
        self.field.press("Enter")
        expect(self.answers.nth(n_answers)).to_be_attached()

    def ask(self, text: str) -> str:
        """Send a message; the text of its answer."""
        self.begin(text)
        self.wait()
        return self.answer

    def wait(self) -> None:
        """Until nothing is being answered."""
        expect(self.page.locator("#stop")).to_be_hidden()

    @property
    def answer(self) -> str:
        """The text of the last answer."""
        return self.answers.last.locator(".body").inner_text()

    def stored(self) -> Sequence[Any]:
        """The conversations in the browser's storage, the last used first."""
        values = self.page.evaluate(
            "Object.keys(localStorage).filter((key) => key.startsWith('weblab-local.conversation.'))"
            ".map((key) => localStorage[key])"
        )
        return sorted(map(json.loads, values), key=lambda one: -one["updated"])

    def endless(self, max_tokens: int = 1900, bytes_per_second: int = 60_000) -> None:
        """Let no answer end before the test does something: what ends it is forbidden, and the line is slow.

        The demo writes 1,900 tokens in less than two seconds; as events they are half a megabyte.
        """
        self.change_requests(logit_bias={"0": -100}, max_tokens=max_tokens)
        self.slow_line(bytes_per_second)

    def slow_line(self, bytes_per_second: int) -> None:
        """Let the server's answers come no faster; -1 is as fast as they can."""
        network = {"offline": False, "latency": 0, "downloadThroughput": bytes_per_second, "uploadThroughput": -1}
        self.page.context.new_cdp_session(self.page).send("Network.emulateNetworkConditions", network)

    def change_requests(self, **values: object) -> None:
        """Send these fields with every question, which the page itself has no control for."""

        def send(route: Any) -> None:
            route.continue_(post_data=json.dumps(route.request.post_data_json | values))

        self.page.route("**/v1/chat/completions", send)


def conversation(title: str, *texts: str, **fields: object) -> Stored:
    """A conversation in storage, in which the user begins and the two take turns; to be merged into Stored."""
    name = f"id-{title}".encode().hex()
    messages = [
        {"id": f"m{i}", "role": ("user", "assistant")[i % 2], "content": text, "time": 0, "finish": "stop"}
        for i, text in enumerate(texts)
    ]
    now = time.time() * 1000
    value = {"id": name, "title": title, "named": True, "created": now, "updated": now, "revision": 1}
    return {f"conversation.{name}": value | {"messages": messages} | fields}


@contextmanager
def visiting(
    browser: Browser, url: str, *, stored: Stored | None = None, path: str = "/", **options: Any
) -> Iterator[Chat]:
    """The page in a profile of its own; `options` are those of a browser context."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (stored or {}).items()}
    kept = [
        {"name": f"weblab-local.{name}", "value": value}
        for name, value in ({"settings": json.dumps(GREEDY)} | texts).items()
    ]
    state: Any = {"cookies": [], "origins": [{"origin": url, "localStorage": kept}]}
    context = browser.new_context(**{"locale": "en-US", "storage_state": state} | options)
    try:
        with tab(context, url, path) as chat:
            yield chat
    finally:
        context.close()


@contextmanager
def tab(context: BrowserContext, url: str, path: str = "/") -> Iterator[Chat]:
    """Another tab of a profile. At its end it has to have been content, and to have asked nobody but the server."""
    chat = Chat(context.new_page(), url)
    chat.page.goto(url + path)
    yield chat
    assert chat.complaints == []
    assert {urlsplit(each).netloc for each in chat.requests if not each.startswith("blob:")} == {urlsplit(url).netloc}
