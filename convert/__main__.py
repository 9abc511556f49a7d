"""`python -m convert`: arguments, exit codes. Everything heavy is imported when the work begins."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from convert.command import command_line, interrupt_on_terminate, reported, start

DEFAULT_SOURCE = "matsuo-lab/weblab-10b-instruction-sft"

app = command_line()


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="A checkpoint's folder, or a Hub id like owner/name.")] = DEFAULT_SOURCE,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            help="One or several of F32 F16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_K_S Q4_0 IQ4_XS Q3_K_M W4 W3; "
            "default: W4, or Q4_K_M with --low-disk or --imatrix."
        ),
    ] = None,
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
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer's files, if it is another than the weights'.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="ADAPTER[=SCALE]", help="A LoRA to merge, a folder or a Hub id; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that quantize; default: all cores.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more.")] = False,
) -> None:
    """Convert a GPT-NeoX checkpoint to GGUF: one pass over the weights, straight to the quantized file.

    Prints the paths of the results on stdout and everything else on stderr.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s")
    interrupt_on_terminate()
    from convert.quantization.mixtures import DEFAULT_MIXTURE, QUICK_MIXTURE
    from convert.run import AUTO, Request, next_step, run
    from weblab_local.models.store import models_dir

    default = QUICK_MIXTURE if low_disk or imatrix else DEFAULT_MIXTURE
    request = Request(
        source=source,
        revision=revision,
        quantizations=(default if quant is None else quant).replace(",", " ").split(),
        output_folder=output or models_dir(),
        low_disk=low_disk,
        force=force,
        chat_template=chat_template,
        threads=threads,
        imatrix=AUTO if imatrix == AUTO else Path(imatrix) if imatrix else None,
        tokenizer=tokenizer and tokenizer.expanduser(),
        lora=lora or (),
    )
    with reported(
        "convert",
        "no unfinished model was left behind; of W4 and W3, what was rounded is kept. "
        "The same command makes what is missing.",
    ):
        paths = run(request)
    print(next_step(paths), file=sys.stderr)
    for path in paths:
        print(path)


if __name__ == "__main__":
    start(app, "convert")
