"""`weblab-local app`: the chat page in the browser, with a server that is there as long as the page is."""

import os
import secrets
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.options import Model
from weblab_local.cli.serve import ServerOptions, server_installed
from weblab_local.cli.signatures import command
from weblab_local.errors import ModelNotFoundError, WeblabError
from weblab_local.home import data_dir
from weblab_local.i18n import _

if TYPE_CHECKING:
    from weblab_local.engine.engine import Engine
    from weblab_local.server.desktop.instance import Instance, Listening

LOCK_NAME = "app.lock"
"""In the data directory."""


@command
def app_window(
    *,
    model: Model = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Open no browser; only print the address of the page.")
    ] = False,
    close_after: Annotated[
        float, typer.Option(min=0, help="Seconds after which the program ends when its page has been closed.")
    ] = 60,
    read_ahead: Annotated[
        bool, typer.Option("--read-ahead/--no-read-ahead", help="Read what is typed on the page while it is typed.")
    ] = True,
) -> None:
    """Open the chat page in the browser, and end when it is closed."""
    with server_installed():
        from weblab_local.server.desktop.instance import Instance, first_or_running

    from weblab_local.models.store import find_model

    if model is not None:
        find_model(model)  # a wrong name is best told where it was typed
    folder = data_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with first_or_running(folder / LOCK_NAME) as found:
        if isinstance(found, Instance):
            _run(found, model, no_browser, close_after, read_ahead)
        else:
            _show(*found, no_browser)


def _run(instance: "Instance", model: str | None, no_browser: bool, close_after: float, read_ahead: bool) -> None:
    """Serve until the page has been closed for `close_after` seconds, or this process is told to end."""
    from weblab_local.server.app import create_desktop_app
    from weblab_local.server.config import ServerConfig
    from weblab_local.server.desktop.instance import Listening
    from weblab_local.server.desktop.model_holder import ModelHolder
    from weblab_local.server.desktop.presence import Presence
    from weblab_local.server.desktop.remembered import remember_port, remembered_port
    from weblab_local.server.desktop.routes import Desktop
    from weblab_local.server.serve import Server, listen
    from weblab_local.server.sidecar import end_at_the_latest

    key = secrets.token_urlsafe(32)
    config = ServerConfig(port=remembered_port(), api_keys=[key], read_ahead=read_ahead)
    try:
        listener = listen(config)
    except WeblabError:  # another program has the port now
        config = replace(config, port=0)
        listener = listen(config)
    with listener, ModelHolder(_load, config) as models:
        desktop = Desktop(key, models, Presence(close_after))
        most_requests = ServerOptions.parallel + config.queue
        server = Server(create_desktop_app(desktop, config), listener, most_requests=most_requests)
        listening = Listening(server.port, key)

        def on_ready() -> None:
            instance.announce(listening)
            desktop.presence.watch(server.stop)
            ticket = desktop.tickets.issue()
            threading.Thread(target=_show, args=(listening, ticket, no_browser), daemon=True).start()

        remember_port(server.port)
        _end_in_order(server.stop)
        if (first := _first_model(model)) is not None:
            models.choose(first)
        try:
            server.run(on_ready)
        finally:
            end_at_the_latest()  # a model that is being loaded from a slow disk would be waited for


def _load(path: str, on_progress: Callable[[float], None]) -> "Engine":
    from weblab_local.models.loading import load

    return load(path, n_parallel=ServerOptions.parallel, on_progress=on_progress)


def _first_model(model: str | None) -> str | None:
    """The model to begin with: as everywhere else, or where the store is empty the file that the last page named."""
    from weblab_local.models.store import find_model
    from weblab_local.server.desktop.remembered import remembered_model

    if model is not None:
        return model
    try:
        return str(find_model(None))
    except ModelNotFoundError:
        return remembered_model()


def _end_in_order(end: Callable[[], None]) -> None:
    """Call `end` when the terminal is closed or the process told to end; unless that is ignored, as by nohup.

    uvicorn handles some of them itself while it runs, and raises them again when it has ended.
    """
    for name in ("SIGHUP", "SIGTERM", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: end())


def _show(listening: "Listening", ticket: str, no_browser: bool) -> None:
    """Open the page, and print its address on stderr.

    The browser gets a ticket, since others can read what it was started with; the address that is printed has the key.
    """
    address = listening.address(f"key={listening.key}")
    print(_("The page is ready: {address}").format(address=address), file=sys.stderr, flush=True)
    if not no_browser and not _open_in_browser(listening.address(f"ticket={ticket}")):
        print(_("No browser could be opened. Open the address yourself."), file=sys.stderr, flush=True)


def _open_in_browser(address: str) -> bool:
    """Whether a browser was started. One that runs in the terminal is none: the page needs a window."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys():
        return False
    if getattr(sys, "frozen", False):
        _forget_own_libraries()
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False


def _forget_own_libraries() -> None:
    """PyInstaller has the frozen program find its own libraries first; a browser that inherits that may not start."""
    before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    if before is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    else:
        os.environ.pop("LD_LIBRARY_PATH", None)
