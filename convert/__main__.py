"""`python -m convert`: arguments, exit codes. Everything heavy is imported when the work begins."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

DEFAULT_SOURCE = "matsuo-lab/weblab-10b-instruction-sft"

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="A checkpoint's folder, or a Hub id like owner/name.")] = DEFAULT_SOURCE,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    quant: Annotated[
        str, typer.Option(help="One or several of F32 F16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_K_S Q4_0 IQ4_XS Q3_K_M W4.")
    ] = "Q4_K_M",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the result; default: where the program looks.")
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option(help="An importance matrix of this model, as llama-imatrix writes it; auto: make one first."),
    ] = None,
    low_disk: Annotated[
        bool, typer.Option("--low-disk", help="Fetch, convert and delete one shard after the other.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing result.")] = False,
    chat_template: Annotated[
        Literal["auto", "weblab", "none"],
        typer.Option(help="The template to put in: the checkpoint's own or, for an instruction model, weblab's."),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that quantize; default: all cores.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more.")] = False,
) -> None:
    """Convert a GPT-NeoX checkpoint to GGUF: one pass over the weights, straight to the quantized file.

    Prints the paths of the results on stdout and everything else on stderr.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    from convert.run import AUTO, Request, next_step, run
    from weblab_local.errors import WeblabError
    from weblab_local.model_store import models_dir

    request = Request(
        source=source,
        revision=revision,
        quantizations=quant.replace(",", " ").split(),
        output_folder=output or models_dir(),
        low_disk=low_disk,
        force=force,
        chat_template=chat_template,
        threads=threads,
        imatrix=AUTO if imatrix == AUTO else Path(imatrix) if imatrix else None,
    )
    try:
        paths = run(request)
    except WeblabError as error:
        print(f"convert: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("\nconvert: interrupted; no unfinished model was left behind. Run it again.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(next_step(paths), file=sys.stderr)
    for path in paths:
        print(path)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app(prog_name="python -m convert")
