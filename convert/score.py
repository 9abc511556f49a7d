"""`python -m convert.score`: how likely the fp16 reference finds given continuations; asked by `weblab-local eval`.

    python -m convert.score REQUESTS SOURCE [--revision R] [--state FILE]

REQUESTS is a file of JSON lines, {"context": [ids], "continuations": [[ids], ...]}. For each, in their order, one line
goes to stdout: [[log-likelihood, whether greedy decoding would give it], ...].
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from convert.command import command_line, interrupt_on_terminate, reported, start
from convert.model.find_checkpoint import find_checkpoint
from convert.progress import shown
from convert.reference.score import read_requests, score

app = command_line()


@app.command()
def main(
    requests: Annotated[Path, typer.Argument(help="JSON lines of token ids.")],
    source: Annotated[str, typer.Argument(help="A checkpoint's folder, or a Hub id like owner/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    state: Annotated[Path | None, typer.Option(help="Where an interrupted pass is kept.")] = None,
) -> None:
    """Score continuations with the fp16 reference, a layer in memory at a time."""
    interrupt_on_terminate()
    with reported("score"):
        asked = read_requests(requests)
        checkpoint, _name = find_checkpoint(source, revision, with_tokenizer=False)
        with shown("fp16 reference") as progress:
            for scores in score(checkpoint, asked, state=state, progress=progress):
                print(json.dumps(scores), flush=True)


if __name__ == "__main__":
    start(app, "convert.score")
