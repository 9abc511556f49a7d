"""`weblab-local tokenize`: ids and pieces of a text."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.options import Model, RuntimeOptions, Special
from weblab_local.cli.signatures import command
from weblab_local.streams import read_all

if TYPE_CHECKING:
    from weblab_local.engine.engine import Engine


@command
def tokenize(
    text: Annotated[str | None, typer.Argument(help="The text.", show_default="read from stdin")] = None,
    *,
    model: Model = None,
    special: Special = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Show the tokens of a text: their ids, and the text of each."""
    from weblab_local.cli.session import open_model

    with open_model(model, RuntimeOptions(n_gpu_layers="0"), n_ctx=16) as engine:
        run(engine, read_all() if text is None else text, special=special, as_json=as_json)


def run(engine: "Engine", text: str, *, special: bool, as_json: bool) -> None:
    """Print a line for each token: its id, and what it stands for (bytes in hex where they are no whole character)."""
    ids = engine.tokenize(text, special=special)
    pieces = [engine.piece(token) for token in ids]
    if as_json:
        print(json.dumps([{"id": t, "bytes": p.hex(), "text": _text(p)} for t, p in zip(ids, pieces, strict=True)]))
        return
    for token, data in zip(ids, pieces, strict=True):
        characters = _text(data)
        print(f"{token:6d}  " + (repr(characters) if characters is not None else f"<{data.hex(' ')}>"))


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
