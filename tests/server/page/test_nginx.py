"""The page behind HTTPS: a real nginx with the guide's lines, a real browser."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.server.page.browser import visiting
from tests.server.support import Running, until
from tests.support.conversions import ROOT
from tests.support.engines import PAIRS

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
CARD = "大規模言語モデルについて説明してください。"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(NGINX is None or OPENSSL is None, reason="needs nginx and openssl")


@contextmanager
def nginx(folder: Path, port: int) -> Iterator[str]:
    """The address of nginx with the lines of the guide before the server at `port`, and a certificate of its own."""
    assert NGINX is not None
    assert OPENSSL is not None
    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (location,) = re.findall(r"^location / \{.*?^\}", guide, re.MULTILINE | re.DOTALL)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([OPENSSL, *request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"server {{\nlisten 127.0.0.1:{own} ssl;\nssl_certificate {certificate};\nssl_certificate_key {key};\n"
        + location.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
        + "\n}\n}\n"
    )
    with subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.PIPE) as process:
        try:
            until(lambda: process.poll() is not None or _listens(own))
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield f"https://127.0.0.1:{own}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_the_page_answers_behind_nginx(browser: Browser, server: Running, tmp_path: Path) -> None:
    with nginx(tmp_path, server.port) as url, visiting(browser, url, ignore_https_errors=True) as chat:
        chat.page.evaluate(
            """() => new MutationObserver(() => {
                const text = document.querySelector("article.assistant .text")?.textContent;
                if (text && text !== window.seen?.at(-1)) (window.seen ??= []).push(text);
            }).observe(document.body, { subtree: true, childList: true, characterData: true })"""
        )
        chat.slow_line(20_000)
        assert chat.ask(CARD) == ANSWERS[CARD]
        assert len(chat.page.evaluate("window.seen")) > 1  # nginx passes on what has come
