"""`weblab-local tokenize`: ids and pieces of a text."""

import json

from weblab_local.engine import Engine


def run(engine: Engine, text: str, *, as_json: bool) -> None:
    """Print a line for each token: its id, and what it stands for (bytes in hex where they are no whole character)."""
    ids = engine.tokenize(text)
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
