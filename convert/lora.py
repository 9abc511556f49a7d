"""`python -m convert.lora`: a LoRA of peft's as a GGUF, which llama.cpp adds to a model while it runs."""

from pathlib import Path
from typing import Annotated

import typer

from convert.command import command_line, reported, start
from convert.errors import ConversionError, OutputError
from convert.model.adapter_gguf import write_adapter
from convert.model.find_checkpoint import find_settings
from convert.progress import say
from convert.source.lora import open_lora
from weblab_local.models.store import ADAPTER_SUFFIX, models_dir
from weblab_local.shell import quoted

app = command_line()


@app.command()
def main(
    adapter: Annotated[str, typer.Argument(help="The adapter's folder, or a Hub id like owner/name.")],
    base: Annotated[str, typer.Option(help="The checkpoint that it was made for: a folder, or a Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base on the Hub.")] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", help="The file to write; default: NAME.lora.gguf beside the models.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Convert a LoRA of a GPT-NeoX to GGUF, for `--lora FILE` of weblab-local and llama.cpp's own tools.

    No weight of the base is read or fetched. Prints the path of the result on stdout and everything else on stderr.
    """
    with reported("lora"):
        lora = open_lora(adapter, say)
        if lora.adapter.scale != 1.0:
            raise ConversionError("The file holds the adapter as it is.", "Give it where it is used: FILE=SCALE.")
        checkpoint, source = find_settings(base, revision)
        path = output_file or models_dir() / f"{lora.adapter.name}{ADAPTER_SUFFIX}"
        if path.exists() and not force:
            raise OutputError(f"{path} exists already.", "Give --force to replace it, or choose another --output.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_adapter(checkpoint, source, lora, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}.", "Choose another --output.") from None
        say(f"Next: {quoted('weblab-local', 'chat', '--lora', str(path))}")
    print(path)


if __name__ == "__main__":
    start(app, "convert.lora")
