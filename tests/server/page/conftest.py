"""A real browser for the tests of the page."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.server.support import Running
from tests.support.engines import PATIENCE

pytest.importorskip("playwright", reason="Playwright is not installed: pip install weblab-local[dev]")

from playwright.sync_api import Browser, expect, sync_playwright

from tests.server.page.browser import ARGUMENTS, CHROMIUM, Chat, visiting

Visit = Callable[..., Chat]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; for a module, since Playwright's event loop keeps others from running."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the path")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: Running) -> Iterator[Visit]:
    """Opens the page of the server that wants no key, in a profile of its own."""
    with ExitStack() as stack:

        def open_page(**options: Any) -> Chat:
            return stack.enter_context(visiting(browser, server.url, **options))

        yield open_page


@pytest.fixture
def chat(visit: Visit) -> Chat:
    """The page, in English and greedy."""
    return visit()
