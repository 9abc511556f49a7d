"""`python -m convert.verify`: compare GGUF files with their checkpoint; the report as text, JSON and a page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from convert.command import command_line, reported, start
from convert.errors import OutputError
from convert.model.find_checkpoint import find_checkpoint
from convert.progress import say
from convert.quantization.mixtures import ALL
from convert.reference.jglue import held_out_texts
from convert.reference.texts import read_texts, verification
from convert.verification.report import as_json, as_text
from convert.verification.report_html import as_html
from convert.verification.verify import DEFAULT_MAX_TOKENS, Options, verify_files
from weblab_local.errors import ModelNotFoundError
from weblab_local.files import private_folder
from weblab_local.home import data_dir
from weblab_local.models.store import models_dir
from weblab_local.sizes import byte_count

app = command_line()


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="The checkpoint's folder, or a Hub id like owner/name.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="GGUF...", help="What was made from it. A folder: all there that bear its name. Default: the store."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer's files, if it is another than the weights'.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="ADAPTER[=SCALE]", help="A LoRA that was merged, a folder or a Hub id; may be repeated."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page.")] = None,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare on these texts too (.jsonl or plain text).")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Compare on about so many tokens; 0: only the files themselves.")
    ] = DEFAULT_MAX_TOKENS,
    continuations: Annotated[
        int | None,
        typer.Option(min=0, help="Greedy continuations to set side by side; default: 4 for a small model, else 0."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the reference's log-probabilities are kept.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
    n_gpu_layers: Annotated[int, typer.Option(min=0, help="Layers that llama.cpp runs on the GPU.")] = 0,
) -> None:
    """Compare GGUF files with the checkpoint they were made from, and say what the quantization costs.

    Prints the report on stdout and progress on stderr. Exit code 0: every file passes; 1: one does not.
    """
    with reported("verify", "the same command goes on where the reference was."), _readable():
        for path in (json_file, html_file):
            if path is not None and not path.absolute().parent.is_dir():
                raise OutputError(f"There is no folder {path.absolute().parent} for {path.name}.", "Make it first.")
        checkpoint, name = find_checkpoint(source, revision, tokenizer, adapters=lora or ())
        kept = reference or data_dir() / "references" / f"{name}.safetensors"
        if reference is None:
            private_folder(kept.parent)  # the log-probabilities of a user's text tell what it is
        else:
            kept.parent.mkdir(parents=True, exist_ok=True)
        chosen = [*verification(), *held_out_texts()]
        if texts is not None:
            chosen += [replace(text, origin=texts.name) for text in read_texts(texts)]
        options = Options(max_tokens, continuations, threads, n_gpu_layers)
        paths = _found(files, name) if files else _made_from(name, models_dir())
        report = verify_files(checkpoint, paths, chosen, kept, options, name)
        if kept.is_file():
            size = byte_count(kept.stat().st_size)
            say(f"The reference's log-probabilities are kept for the next time: {kept}, {size}.")
        for path, content in ((json_file, as_json), (html_file, as_html)):
            if path is not None:
                path.write_text(content(report), encoding="utf-8")
                say(f"written: {path}")
    print(as_text(report), end="")
    raise typer.Exit(0 if report.passed else 1)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Reading or writing failed: {error}.", "Check the disk's free space, and the path."
        ) from None


def _found(paths: Sequence[Path], name: str) -> list[Path]:
    """The files among `paths`, and of the folders what a conversion of the model called `name` writes there."""
    return [file for path in paths for file in (_made_from(name, path) if path.is_dir() else [path])]


def _made_from(name: str, folder: Path) -> list[Path]:
    found = sorted(path for mixture in ALL if (path := folder / f"{name}-{mixture}.gguf").is_file())
    if not found:
        raise ModelNotFoundError(
            f"There is no GGUF of {name} in {folder}.", "Give the file's path, or convert it first: make convert."
        )
    return found


if __name__ == "__main__":
    start(app, "convert.verify")
