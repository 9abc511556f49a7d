"""`weblab-local serve`: the model behind OpenAI's API and a page, for this machine."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weblab_local.cli.session import licence_line
from weblab_local.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.i18n import _

KEY_VARIABLE = "WEBLAB_LOCAL_API_KEY"


@dataclass(frozen=True)
class Options:
    """What the command line says of the server."""

    host: str
    port: int
    queue: int
    timeout: float
    api_key: str | None
    api_key_file: Path | None
    cors_origins: Sequence[str]
    allowed_hosts: Sequence[str]
    sidecar: bool
    log: bool


def run(options: Options, load: Callable[[], Engine]) -> None:
    """Serve until Ctrl-C, or as a sidecar until the parent is gone. `load` is called when the address is had."""
    try:
        from weblab_local.server.config import ServerConfig
        from weblab_local.server.serve import Server, listen
        from weblab_local.server.sidecar import ParentWatch, announce
    except ModuleNotFoundError as error:
        raise WeblabError(
            _("The server needs {name}, which is not installed.").format(name=error.name),
            _('Install it with: pip install "weblab-local[server]"'),
        ) from None
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
        cors_origins=options.cors_origins,
        allowed_hosts=options.allowed_hosts,
        queue=options.queue,
        timeout=options.timeout,
    )
    if options.log:
        _log_to_stderr()
    with listen(config) as listener, load() as engine:
        server = Server(engine, config, listener)
        if watch is not None:
            watch.end_by(server.stop)
            server.run(lambda: announce(server.port, keys[0], engine.name))
        else:
            server.run(lambda: _greet(engine, options.host, server.port))


def _log_to_stderr() -> None:
    """The server's own lines, and no other's: those of llama.cpp may quote a grammar."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("weblab_local.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _keys(options: Options) -> list[str]:
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


def _greet(engine: Engine, host: str, port: int) -> None:
    """Say on stderr what runs where."""
    model, where = engine.description()
    shown = f"[{host}]" if ":" in host else host
    lines = [model, where, licence_line(engine), *engine.warnings]
    print(
        *lines,
        _("http://{host}:{port}/ is ready. Ctrl-C ends it.").format(host=shown, port=port),
        sep="\n",
        file=sys.stderr,
    )
