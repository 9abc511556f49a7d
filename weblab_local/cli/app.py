"""The commands and their options; what each does is in the module of its name, imported when it is called."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from weblab_local.cli import options as o
from weblab_local.cli.help import Commands
from weblab_local.errors import WeblabError
from weblab_local.i18n import Language, _, use

app = Commands(
    name="weblab-local",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="weblab-10b-instruction-sft on your own computer, in Japanese and English, offline.\n\n"
    "The model is licensed under CC BY-NC 4.0: non-commercial use only.",
)


def _speak(lang: Language | None) -> Language | None:
    use(lang)
    return lang


@app.callback()
def _main(
    lang: Annotated[
        Language | None,
        # Eager: before the help is shown, which is in that language too.
        typer.Option(help="What the program speaks.", show_default="the system's", is_eager=True, callback=_speak),
    ] = None,
) -> None:
    pass


@app.command()
def chat(
    model: o.Model = None,
    system: Annotated[str | None, typer.Option(help="Stands before the first instruction.")] = None,
    temperature: o.Temperature = 0.7,
    top_k: o.TopK = 50,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.0,
    repeat_penalty: o.RepeatPenalty = 1.0,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = 512,
    stop: o.Stop = None,
    n_ctx: o.NCtx = None,
    n_gpu_layers: o.NGpuLayers = "auto",
    threads: o.Threads = None,
    kv_type: o.KvType = None,
    rpc: o.Rpc = "",
) -> None:
    """Talk with the model."""
    from weblab_local.cli.chat import run
    from weblab_local.cli.session import open_model

    params = o.sampling_params(temperature, top_k, top_p, min_p, repeat_penalty, seed, max_tokens, stop)
    with open_model(model, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, threads=threads, kv_type=kv_type, rpc=rpc) as engine:
        run(engine, params, system)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The instruction.", show_default="read from stdin")] = None,
    model: o.Model = None,
    input_text: Annotated[str | None, typer.Option("--input", help="A text for the instruction to work on.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with counts and speeds.")] = False,
    temperature: o.Temperature = 0.7,
    top_k: o.TopK = 50,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.0,
    repeat_penalty: o.RepeatPenalty = 1.0,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = 512,
    stop: o.Stop = None,
    n_ctx: o.NCtx = None,
    n_gpu_layers: o.NGpuLayers = "auto",
    threads: o.Threads = None,
    kv_type: o.KvType = None,
    rpc: o.Rpc = "",
) -> None:
    """One answer on stdout, nothing else there."""
    from weblab_local.cli.generate import run
    from weblab_local.cli.session import open_model

    params = o.sampling_params(temperature, top_k, top_p, min_p, repeat_penalty, seed, max_tokens, stop)
    instruction = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
    with open_model(model, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, threads=threads, kv_type=kv_type, rpc=rpc) as engine:
        code = run(engine, instruction, params, input_text, raw=raw, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def tokenize(
    text: Annotated[str | None, typer.Argument(help="The text.", show_default="read from stdin")] = None,
    model: o.Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON array.")] = False,
) -> None:
    """Show a text's token ids and pieces."""
    from weblab_local.cli.session import open_model
    from weblab_local.cli.tokenize import run

    with open_model(model, n_ctx=16, n_gpu_layers="0") as engine:
        run(engine, sys.stdin.read() if text is None else text, as_json=as_json)


@app.command()
def serve(
    model: o.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; one beyond this machine wants a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Answers computed at once; they share the context.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait beside them.")] = 16,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which an answer ends where it is.")] = 600,
    api_key: Annotated[
        str | None, typer.Option(help="Who asks has to know it; the environment's WEBLAB_LOCAL_API_KEY is one too.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with a key on each line.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="A site whose pages may ask too.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="Another name of this machine.")] = None,
    sidecar: Annotated[
        bool, typer.Option("--sidecar", help="For a program that starts this one: JSON on stdout, ends with it.")
    ] = False,
    log: Annotated[bool, typer.Option("--log", help="A line on stderr for every request, without its text.")] = False,
    n_ctx: o.NCtx = None,
    n_gpu_layers: o.NGpuLayers = "auto",
    threads: o.Threads = None,
    kv_type: o.KvType = None,
    rpc: o.Rpc = "",
) -> None:
    """Serve OpenAI's API and a chat page on this machine."""
    from weblab_local.cli.serve import Options, run
    from weblab_local.cli.session import open_model

    options = Options(
        host=host,
        port=port,
        queue=queue,
        timeout=timeout,
        api_key=api_key,
        api_key_file=api_key_file,
        cors_origins=cors_origin or (),
        allowed_hosts=allowed_host or (),
        sidecar=sidecar,
        log=log,
    )
    run(
        options,
        lambda: open_model(
            model,
            n_ctx=n_ctx,
            n_gpu_layers=n_gpu_layers,
            threads=threads,
            kv_type=kv_type,
            rpc=rpc,
            n_parallel=parallel,
        ),
    )


@app.command("rpc-worker")
def rpc_worker(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 50052,
    threads: o.Threads = None,
    allow_network: Annotated[
        bool, typer.Option("--allow-network", help="Listen beyond this machine: in a network you trust, only there.")
    ] = False,
) -> None:
    """Lend this machine to a weblab-local on another one (--rpc there).

    The protocol has neither passwords nor encryption: trusted networks only. A worker that dies takes the client's
    process along.
    """
    from weblab_local.cli.rpc_worker import run

    run(host, port, threads, allow_network)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what is here, what runs on it, and what to change."""
    from weblab_local.cli.doctor import run

    raise typer.Exit(run(as_json=as_json))


@app.command()
def bench(
    model: o.Model = None,
    n_prompt: Annotated[int, typer.Option("--n-prompt", min=1, help="Tokens of prompt.")] = 256,
    n_generate: Annotated[int, typer.Option("--n-generate", min=2, help="Tokens of answer.")] = 64,
    threads: Annotated[str, typer.Option(help="Numbers of threads, like 2,4.", show_default="the search's")] = "",
    kv_type: Annotated[str, typer.Option("--kv-type", help="Of f16,q8_0,q4_0.", show_default="the search's")] = "",
    flash_attention: Annotated[
        str, typer.Option("--flash-attention", help="Of on,off.", show_default="the search's")
    ] = "",
    repack: Annotated[str, typer.Option("--repack", help="Of on,off.", show_default="the search's")] = "",
    repetitions: Annotated[int, typer.Option(min=1, help="Of every measurement.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Make the best setting this machine's default.")] = False,
) -> None:
    """Measure speeds, and find this machine's best setting.

    With settings given, all their combinations are measured; without, one thing after the other is tried.
    """
    from weblab_local.bench import Workload
    from weblab_local.cli.bench import Grid, run

    workload = Workload(n_prompt, n_generate, repetitions)
    run(model, workload, Grid(threads, kv_type, flash_attention, repack), as_json=as_json, save=save)


@app.command("eval")
def evaluate(
    suite: Annotated[
        Literal["jglue-4", "jglue-8"], typer.Option(help="The card's four tasks, or its eight.")
    ] = "jglue-4",
    tasks: Annotated[str, typer.Option(help="Single ones: jcommonsenseqa,jnli,...", show_default="the suite's")] = "",
    data: Annotated[
        Path | None, typer.Option(help="A folder with JGLUE's published files.", show_default="the Hub")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.", show_default="all")] = None,
    model: o.Model = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two models on the same questions; quantizations will do: Q4_K_M Q8_0."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Compare with this checkpoint in fp16, a layer at a time.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the reference, on the Hub.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Questions at a time; each takes memory for its context.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again what was answered before.")] = False,
    log: Annotated[Path | None, typer.Option(help="A file for each question's prompt and answers, JSON lines.")] = None,
    output: Annotated[Path | None, typer.Option(help="A folder for lm-eval's JSON.")] = None,
    n_gpu_layers: o.NGpuLayers = "auto",
    threads: o.Threads = None,
    kv_type: o.KvType = None,
    rpc: o.Rpc = "",
) -> None:
    """Run the model card's benchmark, beside the card's figures.

    An interrupted run goes on where it was. Answers are kept for the next comparison.
    """
    from weblab_local.cli.evaluate import Evaluation, Runtime, chosen_tasks, run

    if compare is not None and (model is not None or reference is not None):
        raise typer.BadParameter(_("--compare takes the place of --model and --reference."))
    evaluation = Evaluation(chosen_tasks(suite, tasks), data, limit, reference, revision, fresh, log, output)
    run(compare or [model], evaluation, Runtime(parallel, n_gpu_layers, threads, kv_type, rpc))


models_app = Commands(help="The store: list it, verify, choose, import, remove.", no_args_is_help=False)
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the models in the store."""
    if context.invoked_subcommand is None:
        from weblab_local.cli.models import show

        show()


@models_app.command()
def verify(name: Annotated[str | None, typer.Argument(show_default="all")] = None) -> None:
    """Compare SHA-256 with what the conversion recorded."""
    from weblab_local.cli.models import verify as run

    run(name)


@models_app.command("use")
def use_model(name: Annotated[str, typer.Argument()]) -> None:
    """Make a model the default."""
    from weblab_local.cli.models import use as run

    run(name)


@models_app.command("import")
def import_model(path: Annotated[Path, typer.Argument()]) -> None:
    """Copy a GGUF into the store."""
    from weblab_local.cli.models import import_file

    import_file(path)


@models_app.command("rm")
def remove_model(name: Annotated[str, typer.Argument()]) -> None:
    """Delete a model from the store."""
    from weblab_local.cli.models import remove

    remove(name)


def main() -> None:
    """Run the command line; errors of this package are printed with their remedy, without a traceback."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe in cp932 or cp1252 does not have every character
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused with its reason, later
    use(None)
    try:
        app()
    except (WeblabError, OSError) as error:
        print(f"weblab-local: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _open_closed_streams() -> None:
    """Whoever started this may have closed stdin, stdout or stderr (`>&-`): Python has None for them then.

    And the next file that is opened would get its number, and what llama.cpp prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
