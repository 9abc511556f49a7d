"""The picture of the page in the README and the guide: `python -m tests.server.screenshot` takes it anew."""

from playwright.sync_api import sync_playwright

from tests.server.page.browser import ARGUMENTS, CHROMIUM, conversation, visiting
from tests.server.support import serving
from tests.support.conversions import ROOT
from tests.support.engines import engine_of

PICTURE = ROOT / "docs" / "images" / "page.png"
QUESTIONS = ("大規模言語モデルについて説明してください。", "FizzBuzzをPythonで書いて。")
OTHERS = ("量子化って何？", "京都で雨の日に", "Weekend reading list")


def main() -> None:
    """Ask the demo some questions in Japanese, and keep what the page looks like then."""
    stored = {name: value for title in OTHERS for name, value in conversation(title, title, title).items()}
    with (
        engine_of(n_parallel=1) as engine,
        serving(engine) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as browser,
        visiting(browser, server.url, locale="ja-JP", color_scheme="light", stored=stored) as chat,
    ):
        chat.page.set_viewport_size({"width": 1200, "height": 850})
        for question in QUESTIONS:
            chat.ask(question)
        chat.page.mouse.move(0, 0)
        chat.page.screenshot(path=PICTURE, animations="disabled")
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
