"""`weblab-local models`: what is in the store, and what can be done with it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from weblab_local.cli.signatures import command
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.sizes import model_size


@command
def models(context: typer.Context) -> None:
    """List the models in the store, or verify, choose, import or delete one."""
    if context.invoked_subcommand is None:
        show()


def show() -> None:
    """Print the store as a table; the default model is marked."""
    from rich.console import Console
    from rich.table import Table

    from weblab_local.models import store

    models = store.stored_models()
    if not models:
        print(_("There is no model in {folder} yet.").format(folder=store.models_dir()), file=sys.stderr)
        return
    default = store.find_model()
    table = Table(box=None, pad_edge=False)
    verified = any(model.mean_kl for model in models)
    titles = ["", _("Name"), _("Size"), _("Type"), *(["KL"] if verified else []), _("Source"), "SHA-256"]
    for title in titles:
        table.add_column(title, no_wrap=title != _("Source"))
    for model in models:
        size = model_size(model.size)
        mark = "*" if model.path == default else ""
        kl = " ".join(f"{language} {value:.4f}" for language, value in model.mean_kl.items())
        cells = [mark, model.name, size, model.mixture, *([kl] if verified else []), model.source, model.sha256[:12]]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for adapter, base in store.stored_adapters():
        print(_("Adapter {name}, of {base}").format(name=adapter, base=base or _("unknown")))


@command
def verify(
    name: Annotated[str | None, typer.Argument(help="Name of the model.", show_default="all models")] = None,
) -> None:
    """Check that model files have the SHA-256 that their conversion recorded."""
    from weblab_local.models import store

    models = store.stored_models() if name is None else [store.stored_model(name)]
    spoiled = []
    for model in models:
        if name is None and not model.sha256:
            print(_("{name}: no SHA-256 recorded").format(name=model.name))
            continue
        with _bar(model.name) as on_progress:
            whole = store.verify_model(model, on_progress)
        print(f"{model.name}: " + (_("as it was made") if whole else _("CHANGED")))
        if not whole:
            spoiled.append(model.name)
    if spoiled:
        raise WeblabError(
            _("Not as they were made: {names}.").format(names=", ".join(spoiled)),
            _("Convert them again: make convert FORCE=1."),
        )


@command
def use(name: Annotated[str, typer.Argument(help="Name of the model.")]) -> None:
    """Make a model the default."""
    from weblab_local.models import store

    print(_("{name} is the default now.").format(name=store.use_model(name).name))


@command
def import_file(path: Annotated[Path, typer.Argument(help="The GGUF file.")]) -> None:
    """Copy a GGUF file into the store."""
    from weblab_local.models import store

    with _bar(path.name) as on_progress:
        model = store.import_model(path, on_progress)
    print(_("{name} is in the store.").format(name=model.name))


@command
def remove(name: Annotated[str, typer.Argument(help="Name of the model.")]) -> None:
    """Delete a model from the store."""
    from weblab_local.models import store

    print(_("{path} was deleted.").format(path=store.remove_model(name)))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
