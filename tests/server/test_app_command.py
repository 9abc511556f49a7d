"""`weblab-local app` as a program: how it starts, whom it lets in, how it ends."""

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.server.apps import Browser, Program, command, in_process, started
from tests.server.support import KEY, client_of, until, user
from tests.support.conversions import ROOT
from tests.support.engines import PAIRS, PATIENCE
from weblab_local.cli.app_window import LOCK_NAME
from weblab_local.home import data_dir
from weblab_local.models.store import demo_model, import_model
from weblab_local.server.desktop.presence import Presence

NOBODY = 65534


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path)


def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that ends by itself."""
    environment = os.environ | {"LANG": "C.UTF-8"} | variables
    return subprocess.run(
        command(*options), cwd=ROOT, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )


def answer(app: Program) -> str | None:
    with client_of(app.port, app.key) as client:
        done = client.chat.completions.create(model="default", messages=user(PAIRS[0].instruction), temperature=0)
        return done.choices[0].message.content


def test_it_starts_with_the_models_that_other_commands_take() -> None:
    with started("--no-browser", "--model", "demo") as app:
        until_loaded(app)
        assert answer(app) == PAIRS[0].response
        app.process.send_signal(signal.SIGTERM)
        app.process.wait(PATIENCE)

    import_model(demo_model())
    with started("--no-browser") as app:
        until_loaded(app)
        assert app.status()["name"] == demo_model().stem
        assert app.status()["offers"] == [{"name": demo_model().stem, "size": demo_model().stat().st_size}]


def until_loaded(app: Program) -> None:
    until(lambda: app.status()["state"] != "loading")
    assert app.status()["state"] == "loaded"


def test_a_model_from_elsewhere_is_there_again_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "よい モデル.gguf"
    shutil.copy(demo_model(), path)
    with started("--no-browser") as app:
        assert app.status()["state"] == "none"
        assert app.choose(path)["name"] == path.stem

    with started("--no-browser") as app:
        until_loaded(app)
        assert app.status()["name"] == path.stem

    path.unlink()
    with started("--no-browser") as app:
        assert app.status()["state"] == "none"


def test_a_wrong_model_is_refused_at_once(browser: Browser) -> None:
    done = run("--model", "no-such-model", BROWSER=str(browser.program))
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no model called 'no-such-model'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_start_opens_the_page_of_the_first(browser: Browser) -> None:
    with started(BROWSER=str(browser.program)) as app:
        (first,) = browser.opened(1)
        done = run(BROWSER=str(browser.program))
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"The page is ready: {app.url}/#key={app.key}\n"
        assert app.process.poll() is None

        addresses = browser.opened(2)
        tickets = [address.removeprefix(f"{app.url}/#ticket=") for address in addresses]
        assert first == addresses[0]
        assert len({*tickets, app.key}) == 3
        for ticket in tickets:
            assert redeemed(app, ticket).json() == {"key": app.key}


def redeemed(app: Program, ticket: str) -> httpx2.Response:
    return httpx2.post(f"{app.url}/app/key", json={"ticket": ticket}, timeout=PATIENCE)


def test_two_starts_at_once_are_one_server(browser: Browser) -> None:
    starts = [
        subprocess.Popen(
            command("--close-after", "0"),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"BROWSER": str(browser.program)},
        )
        for _ in range(3)
    ]
    addresses = browser.opened(3)
    assert len({address.partition("#")[0] for address in addresses}) == 1
    url, _hash, ticket = addresses[0].partition("#ticket=")
    key = httpx2.post(f"{url}app/key", json={"ticket": ticket}).json()["key"]
    with httpx2.stream("GET", f"{url}v1/app/presence", headers={"Authorization": f"Bearer {key}"}) as page:
        assert page.status_code == 200
    assert [start.wait(PATIENCE) for start in starts] == [0, 0, 0]
    for start in starts:
        start.communicate()


def test_only_its_user_can_read_where_it_is_and_nobody_when_it_has_ended() -> None:
    with started("--no-browser") as app:
        lock = data_dir() / LOCK_NAME
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        assert app.key in lock.read_text()
        app.process.send_signal(signal.SIGTERM)
        app.process.wait(PATIENCE)
    assert lock.read_text() == ""


def test_what_a_killed_one_left_does_not_stop_the_next(browser: Browser) -> None:
    with started("--no-browser") as app:
        app.process.kill()
        app.process.wait(PATIENCE)
        assert app.key in (data_dir() / LOCK_NAME).read_text()
    (data_dir() / LOCK_NAME).chmod(0o644)
    with started(BROWSER=str(browser.program)) as app:
        assert browser.opened(1)[0].startswith(f"{app.url}/#ticket=")
        assert stat.S_IMODE((data_dir() / LOCK_NAME).stat().st_mode) == 0o600


def test_it_takes_its_port_again_where_that_is_free() -> None:
    """A browser keeps the conversations of each address apart."""
    with started("--no-browser") as first:
        pass
    with started("--no-browser") as second:
        assert second.port == first.port
    with socket.create_server(("127.0.0.1", first.port)), started("--no-browser") as third:
        assert third.port != first.port


def test_without_a_browser_it_says_the_address() -> None:
    without = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"}
    environment = {name: value for name, value in os.environ.items() if name not in without}
    process = subprocess.Popen(command("--lang", "ja"), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        assert "ページの準備ができました: http://127.0.0.1:" in process.stderr.readline()
        assert process.stderr.readline() == ("ブラウザを開けませんでした。このアドレスをブラウザで開いてください。\n")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def not_ignored(number: signal.Signals) -> Iterator[None]:
    """For what is started meanwhile: where the tests run under nohup, it would ignore the signal too."""
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 0), (signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_with_its_terminal_and_when_it_is_told_to(number: signal.Signals, code: int) -> None:
    with (
        not_ignored(number),
        started("--no-browser", "--model", "demo") as app,
        app.http as http,
        http.stream("GET", "/v1/app/presence") as page,
    ):
        assert page.status_code == 200
        app.process.send_signal(number)
        _stdout, stderr = app.process.communicate(timeout=PATIENCE)
    assert (app.process.returncode, stderr) == (code, "")
    assert (data_dir() / LOCK_NAME).read_text() == ""


def test_a_loading_that_does_not_end_keeps_it_no_longer() -> None:
    code = "import threading; import weblab_local.cli.app_window as window; stuck = threading.Event()"
    code += "; window._load = lambda *_: stuck.wait()"
    with started("--no-browser", "--model", "demo", code=code) as app:
        until(lambda: app.status()["state"] == "loading")
        app.process.send_signal(signal.SIGTERM)
        assert app.process.wait(PATIENCE) == 0


def test_it_ends_when_the_last_page_is_closed() -> None:
    with started("--no-browser", "--close-after", "0.2") as app, app.http as http:
        with http.stream("GET", "/v1/app/presence") as page:
            assert page.status_code == 200
        _stdout, stderr = app.process.communicate(timeout=PATIENCE)
    assert (app.process.returncode, stderr) == (0, "")


def test_of_several_pages_the_last_one_counts_and_one_that_comes_in_time() -> None:
    async def pages() -> Sequence[bool]:
        ended = asyncio.Event()
        presence = Presence(close_after=0)
        presence.watch(ended.set)
        seen = []
        with presence.page():
            with presence.page():
                pass
            await turns()
            seen.append(ended.is_set())
        with presence.page():
            await turns()
            seen.append(ended.is_set())
        await asyncio.wait_for(ended.wait(), PATIENCE)
        return seen

    async def turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    assert asyncio.run(pages()) == [False, False]


def test_a_ticket_is_good_once() -> None:
    with in_process() as app:
        ticket = app.desktop.tickets.issue()
        assert httpx2.post(f"{app.url}/app/key", json={"ticket": ticket}).json() == {"key": KEY}
        for wrong in (ticket, "", "x"):
            response = httpx2.post(f"{app.url}/app/key", json={"ticket": wrong})
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_ticket")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("curl") is None, reason="needs root, to be somebody else, and curl"
)
@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "http://[::ffff:127.0.0.1]:{port}"])
def test_a_ticket_is_good_for_no_other_user(address: str) -> None:
    with in_process() as app:
        body = f'{{"ticket": "{app.desktop.tickets.issue()}"}}'

        def exchanged(user: int) -> str:
            url = f"{address.format(port=app.port)}/app/key"
            return subprocess.run(
                ["curl", "-s", url, "-H", "Content-Type: application/json", "-d", body],
                user=user,
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        assert "other_user" in exchanged(NOBODY)
        assert KEY in exchanged(os.geteuid())


def test_the_model_is_chosen_with_the_key_and_from_this_origin_only() -> None:
    chosen = {"model": "demo"}
    with in_process() as app, app.http as http:
        for path in ("/v1/app/model", "/v1/app/ticket"):
            assert httpx2.post(app.url + path, json=chosen).status_code == 401
            response = http.post(path, json=chosen, headers={"Origin": "http://elsewhere.example"})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")
        for path in ("/v1/app/model", "/v1/app/presence"):
            assert httpx2.get(app.url + path).status_code == 401
        assert app.status()["state"] == "none"
        assert http.post("/v1/app/model", json=chosen, headers={"Origin": app.url}).status_code == 202
