"""The program: its commands, each in the module of its name, and `main`.

Building the help imports all these modules, so they import what is heavy only where a command runs.
"""

import sys

from weblab_local import streams
from weblab_local.cli import models
from weblab_local.cli.app_window import app_window
from weblab_local.cli.bench import bench
from weblab_local.cli.chat import chat
from weblab_local.cli.doctor import doctor
from weblab_local.cli.evaluate import evaluate
from weblab_local.cli.generate import generate
from weblab_local.cli.help import Commands
from weblab_local.cli.language import language_asked
from weblab_local.cli.rpc_worker import rpc_worker
from weblab_local.cli.self_test import self_test_device
from weblab_local.cli.serve import serve
from weblab_local.cli.signatures import command
from weblab_local.cli.tokenize import tokenize
from weblab_local.errors import WeblabError
from weblab_local.i18n import use
from weblab_local.interpreter import import_sysconfig


@command
def program() -> None:
    """Run weblab-10b-instruction-sft on your own computer, offline, in Japanese and English.

    The model is licensed under CC BY-NC 4.0: non-commercial use only.
    """


app = Commands(
    name="weblab-local",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    callback=program,
)
for name, function in {
    "chat": chat,
    "generate": generate,
    "tokenize": tokenize,
    "serve": serve,
    "app": app_window,
    "rpc-worker": rpc_worker,
    "doctor": doctor,
    "bench": bench,
    "eval": evaluate,
}.items():
    app.command(name)(function)
app.command("self-test-device", hidden=True)(self_test_device)

store = Commands(name="models", callback=models.models, invoke_without_command=True)
for name, function in {
    "verify": models.verify,
    "use": models.use,
    "import": models.import_file,
    "rm": models.remove,
}.items():
    store.command(name)(function)
app.add_typer(store)


def main() -> None:
    """Run the command line; errors of this package are printed with their remedy, without a traceback."""
    streams.prepare()
    if not getattr(sys, "argv", None):  # an interpreter inside of an app need not have any
        sys.argv = ["weblab-local"]
    import_sysconfig()
    use(language_asked(sys.argv[1:]))
    try:
        app()
    except (WeblabError, OSError) as error:
        print(f"weblab-local: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
