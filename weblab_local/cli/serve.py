"""`weblab-local serve`: the model behind OpenAI's API and a page, for this machine."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.options import Model, NCtx, RuntimeOptions
from weblab_local.cli.signatures import command
from weblab_local.errors import WeblabError
from weblab_local.i18n import _, n_

if TYPE_CHECKING:
    from weblab_local.engine.engine import Engine

KEY_VARIABLE = "WEBLAB_LOCAL_API_KEY"


@dataclass(frozen=True)
class ServerOptions:
    """How the server is reached and by whom, and how much it does at once."""

    host: Annotated[
        str,
        typer.Option(
            metavar=n_("ADDRESS"), help="Address to listen on; one that other machines can reach needs an API key."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Answers to compute at the same time; they share the context.")
    ] = 4
    queue: Annotated[int, typer.Option(min=0, help="Further requests that may wait; any more are refused.")] = 16
    timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds an answer may be computed for; then it ends with what there is of it. A request waits as "
            "long for its turn.",
        ),
    ] = 600
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar=n_("KEY"),
            help="The key that clients must send. The environment variable WEBLAB_LOCAL_API_KEY sets one too.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None, typer.Option(metavar=n_("FILE"), help="File with one key per line; clients must send one of them.")
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Website whose pages may use this server from the browser, like https://example.com."
        ),
    ] = None
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar=n_("NAME"), help="Another name by which clients may address this machine."),
    ] = None
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar=n_("NAME"), help="Another name by which clients may ask for the model."),
    ] = None
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Answer with the loaded model, whichever a client asks for.")
    ] = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse fields that are not honoured, by their name, instead of naming them in the answer."
        ),
    ] = False
    responses: Annotated[
        int, typer.Option(min=0, help="Answers of /v1/responses that are kept in memory, to be gone on with.")
    ] = 64
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Give counts and speeds under /metrics, in Prometheus' text form.")
    ] = False
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar", help="For apps that start the server: print address and key as JSON, and end with the app."
        ),
    ] = False
    read_ahead: Annotated[
        bool, typer.Option("--read-ahead/--no-read-ahead", help="Read what is typed on the page while it is typed.")
    ] = True
    log: Annotated[bool, typer.Option("--log", help="Print a line on stderr for every request, without its text.")] = (
        False
    )


@command
def serve(*, model: Model = None, server: ServerOptions, n_ctx: NCtx = None, runtime: RuntimeOptions) -> None:
    """Serve an OpenAI-compatible API and a chat page on this machine."""
    from weblab_local.cli.session import open_model

    run(server, lambda: open_model(model, runtime, n_ctx=n_ctx, n_parallel=server.parallel, workload="serve"))


def run(options: ServerOptions, load: "Callable[[], Engine]") -> None:
    """Serve until Ctrl-C, or as a sidecar until the parent is gone. `load` is called when the address is had."""
    with server_installed():
        from weblab_local.server.app import create_app
        from weblab_local.server.config import ServerConfig
        from weblab_local.server.serve import Server, listen
        from weblab_local.server.sidecar import ParentWatch, announce
    watch = None
    keys = _keys(options)
    if options.sidecar:
        keys = [secrets.token_urlsafe(32), *keys]
        watch = ParentWatch()
        watch.start()
    config = ServerConfig(
        host=options.host,
        port=options.port,
        api_keys=keys,
        cors_origins=options.cors_origin or (),
        allowed_hosts=options.allowed_host or (),
        queue=options.queue,
        timeout=options.timeout,
        read_ahead=options.read_ahead,
        aliases=options.alias or (),
        any_model=options.any_model,
        strict=options.strict,
        responses=options.responses,
        metrics=options.metrics,
    )
    if options.log:
        _log_to_stderr()
    with listen(config) as listener, load() as engine:
        server = Server(create_app(engine, config), listener, most_requests=engine.n_parallel + config.queue)
        if watch is not None:
            watch.end_by(server.stop)
            server.run(lambda: announce(server.port, keys[0], engine.name))
        else:
            server.run(lambda: _greet(engine, options.host, server.port))


@contextmanager
def server_installed() -> Iterator[None]:
    """In it the server is imported. Raises WeblabError where a package of the extra `server` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise WeblabError(
            _("The server needs {name}, which is not installed.").format(name=error.name),
            _('Install it with: pip install "weblab-local[server]"'),
        ) from None


def _log_to_stderr() -> None:
    """The server's own lines, and no other's: those of llama.cpp may quote a grammar."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("weblab_local.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _keys(options: ServerOptions) -> list[str]:
    """The keys given by option, file or environment."""
    keys = [options.api_key, os.environ.get(KEY_VARIABLE)]
    if options.api_key_file is not None:
        try:
            keys += options.api_key_file.read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise WeblabError(
                _("{path} cannot be read: {error}.").format(path=options.api_key_file, error=error),
                _("Write one API key on a line of it."),
            ) from None
    found = [key for key in keys if key]
    if not found and (options.api_key is not None or options.api_key_file is not None):
        raise WeblabError(_("The API key is empty."), _("Give one, or leave the option out."))
    return found


def _greet(engine: "Engine", host: str, port: int) -> None:
    """Say on stderr what runs where."""
    from weblab_local.cli.session import licence_line

    model, where = engine.description()
    shown = f"[{host}]" if ":" in host else host
    lines = [model, where, licence_line(engine), *engine.warnings]
    print(
        *lines,
        _("http://{host}:{port}/ is ready. Ctrl-C ends it.").format(host=shown, port=port),
        sep="\n",
        file=sys.stderr,
    )
