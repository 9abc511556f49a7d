"""The app's folder, copied to where a person keeps it, and double-clicked, with a display and a real Chromium.

`python -m tests.app.double_click` takes the guide's picture anew; `make app` builds the folder first.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Playwright, expect, sync_playwright

from tests.examples import desktop
from tests.server.page.browser import ARGUMENTS, CHROMIUM, Chat
from tests.server.support import until
from tests.support.conversions import ROOT
from tests.support.engines import PATIENCE

FOLDER = ROOT / "dist" / "weblab-local"
PICTURE = ROOT / "docs" / "images" / "app.png"
PLACE = Path("デスクトップ", "AI アプリ")
SIZE = (1200, 850)


@dataclass(frozen=True)
class Opened:
    """The app, the page that it opened, and its display's environment."""

    process: subprocess.Popen[str]
    chat: Chat
    screen: Mapping[str, str]
    started: float
    served: float
    """time.perf_counter() at the start of its process, and when its page could be had."""

    def load_demo(self) -> None:
        """Choose the demo model, and wait until it is loaded."""
        dialog = self.chat.page.get_by_role("dialog")
        dialog.get_by_role("button", name="デモモデルを試す").click()
        expect(dialog).to_be_hidden(timeout=PATIENCE * 1000)


@contextmanager
def double_clicked(home: Path, playwright: Playwright) -> Iterator[Opened]:
    """A copy of the app in `home`, started as a file manager does it."""
    program = shutil.copytree(FOLDER, home / PLACE, symlinks=True) / "weblab-local"
    profile = home / "profile"
    with desktop.display(home, SIZE) as screen:
        environment = {"PATH": "/nowhere", "HOME": str(home), "LANG": "ja_JP.UTF-8", **screen}
        environment["BROWSER"] = str(_browser(home, profile))
        started = time.perf_counter()
        with subprocess.Popen(
            [program],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                assert "http://127.0.0.1:" in process.stderr.readline()
                served = time.perf_counter()
                port = profile / "DevToolsActivePort"
                until(lambda: port.exists() and len(port.read_text().splitlines()) == 2)
                browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port.read_text().split()[0]}")
                (page,) = browser.contexts[0].pages
                page.wait_for_url("http://127.0.0.1:*/")
                yield Opened(process, Chat(page, page.url), screen, started, served)
                browser.new_browser_cdp_session().send("Browser.close")
                until(lambda: not (profile / "SingletonLock").is_symlink())
            finally:
                process.terminate()


def _browser(home: Path, profile: Path) -> Path:
    """What BROWSER names: Chromium with a profile of its own, which says by which port it can be talked to."""
    assert CHROMIUM is not None
    options = ("--accept-lang=ja-JP,ja", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--test-type")
    geometry = ("--window-position=0,0", f"--window-size={SIZE[0]},{SIZE[1]}")
    program = home / "browser"
    command = shlex.join([CHROMIUM, *ARGUMENTS, *options, *geometry])
    path = shlex.quote(os.environ["PATH"])
    program.write_text(f'#!/bin/sh\nPATH={path}\nexport PATH\n{command} "$@" &\n')
    program.chmod(0o755)
    return program


def main() -> None:
    """Ask it something in Japanese, and keep what its display looks like then."""
    from PIL import ImageGrab

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        sync_playwright() as playwright,
        double_clicked(Path(folder), playwright) as app,
    ):
        app.load_demo()
        app.chat.ask("大規模言語モデルについて説明してください。")
        os.environ |= app.screen
        ImageGrab.grab(xdisplay=app.screen["DISPLAY"]).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
