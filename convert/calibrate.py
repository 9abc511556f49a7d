"""`python -m convert.calibrate`: an importance matrix of a checkpoint's activations, for `--imatrix`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from convert.calibration.calibrate import MAX_TOKENS, calibrated, calibration_texts
from convert.command import command_line, interrupt_on_terminate, reported, start
from convert.errors import OutputError
from convert.model.find_checkpoint import find_checkpoint
from convert.writing import output
from weblab_local.models.store import IMATRIX_SUFFIX, models_dir

app = command_line()


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="A checkpoint's folder, or a Hub id like owner/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer's files, if it is another than the weights'.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="ADAPTER[=SCALE]", help="A LoRA to merge, a folder or a Hub id; may be repeated."),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", help="The file to write; default: NAME.imatrix.gguf beside the models.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts of your own, JSONL or plain text; default: this project's.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to calibrate on, at most.")] = MAX_TOKENS,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that was not made by this command.")] = False,
) -> None:
    """Collect an importance matrix of a GPT-NeoX checkpoint, for `python -m convert --imatrix FILE`.

    Prints the path of the result on stdout and everything else on stderr.
    """
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    interrupt_on_terminate()
    with reported("calibrate", "the same command goes on at the last finished layer."):
        chosen = calibration_texts(texts, tokens)
        checkpoint, name = find_checkpoint(source, revision, tokenizer, adapters=lora or ())
        path = output_file or models_dir() / f"{name}{IMATRIX_SUFFIX}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Cannot make the folder {path.parent}: {error}.", "Choose another --output.") from None
        with output.exclusive(path.parent):
            calibrated(checkpoint, chosen, path, force)
    print(path)


if __name__ == "__main__":
    start(app, "convert.calibrate")
