"""`weblab-local bench`: the speeds as a table or JSON on stdout, the progress on stderr."""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, get_args

import typer

from weblab_local.cli.options import Lora, Model
from weblab_local.cli.signatures import command
from weblab_local.errors import WeblabError
from weblab_local.i18n import _, n_
from weblab_local.llama.kv_types import KvType
from weblab_local.streams import json_text

if TYPE_CHECKING:
    from weblab_local.diagnosis.bench import Row, Speed, Workload
    from weblab_local.machine.tuning import Setting

T = TypeVar("T")


@dataclass(frozen=True)
class Grid:
    """Values to measure, between commas; "" where an option was not given."""

    threads: Annotated[
        str, typer.Option(metavar=n_("LIST"), help="Numbers of threads, like 2,4.", show_default="searched")
    ] = ""
    kv_type: Annotated[
        str,
        typer.Option(
            metavar=n_("LIST"), help="Data types of the KV cache, out of f16,q8_0,q4_0.", show_default="searched"
        ),
    ] = ""
    flash_attention: Annotated[
        str,
        typer.Option(metavar=n_("LIST"), help="Flash attention: on, off, or on,off for both.", show_default="searched"),
    ] = ""
    repack: Annotated[
        str,
        typer.Option(
            metavar=n_("LIST"),
            help="Rearranging the weights for this processor: on, off, or on,off for both.",
            show_default="searched",
        ),
    ] = ""
    n_batch: Annotated[
        str,
        typer.Option(
            metavar=n_("LIST"), help="Tokens of a prompt computed at once, like 128,512.", show_default="searched"
        ),
    ] = ""

    def settings(self, physical: int, workload: "Workload") -> "list[Setting] | None":
        """All combinations, the default for what was not given. None where nothing was. WeblabError for bad values."""
        from weblab_local.diagnosis.bench import combinations

        if not (self.threads or self.kv_type or self.flash_attention or self.repack or self.n_batch):
            return None
        settings = combinations(
            _parsed("--threads", self.threads, _count, _("numbers from 1 on, like 2,4")) or [physical],
            cast(
                list[KvType], _parsed("--kv-type", self.kv_type, _one_of(get_args(KvType)), ", ".join(get_args(KvType)))
            )
            or ["f16"],
            _parsed("--flash-attention", self.flash_attention, _switch, _("on and off")) or [True],
            _parsed("--repack", self.repack, _switch, _("on and off")) or [True],
            _parsed("--n-batch", self.n_batch, _count, _("numbers from 1 on, like 2,4"))
            or [workload.default(physical).n_batch],
        )
        if not settings:
            raise WeblabError(
                _("None of these combinations is possible: a KV cache in q8_0 or q4_0 needs flash attention.")
            )
        return settings


@command
def bench(
    *,
    model: Model = None,
    workload: Annotated[
        Literal["chat", "prompt", "serve"],
        typer.Option(
            help="What to find the fastest setting for: a conversation, prompts with hardly any answer (eval), or "
            "several answers at the same time."
        ),
    ] = "chat",
    n_prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens in the prompt.", show_default="256; 512 for prompt")
    ] = None,
    n_generate: Annotated[
        int | None, typer.Option(min=2, help="Tokens in the answer.", show_default="64; 2 for prompt")
    ] = None,
    grid: Grid,
    lora: Lora = None,
    repetitions: Annotated[int, typer.Option(min=1, help="How often to repeat each measurement.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Make the fastest setting this machine's default for that kind of work.")
    ] = False,
) -> None:
    """Measure speeds and find the fastest setting for this machine.

    Without --threads, --kv-type, --flash-attention, --repack and --n-batch, one of them after the other is searched for
    its best value. With any of them, all combinations of the values given are measured.
    """
    from weblab_local.diagnosis.bench import Workload

    measured = Workload.of(workload, n_prompt, n_generate, repetitions)
    run(model, measured, grid, lora or (), as_json=as_json, save=save)


def run(
    model: str | None, workload: "Workload", grid: Grid, lora: Sequence[str] = (), *, as_json: bool, save: bool
) -> None:
    """Measure and print. Raises WeblabError when nothing could be measured."""
    from weblab_local.diagnosis import bench as measuring
    from weblab_local.machine.bandwidth import memory_bandwidth
    from weblab_local.machine.devices import physical_cores
    from weblab_local.machine.tuning import save_setting, usable_cpus
    from weblab_local.models.store import demo_model, find_model, split_scale

    path = find_model(model)
    measuring.check_workload(path, workload)
    adapters = [split_scale(adapter) for adapter in lora]
    physical = physical_cores()
    settings = grid.settings(physical, workload)
    _say(_("Measuring the memory's bandwidth"))
    bandwidth = memory_bandwidth(usable_cpus())

    def measure(setting: "Setting") -> "Row":
        _say(_describe(setting))
        return measuring.measure(path, setting, workload, adapters)

    if settings is None:
        rows = list(measuring.sweep(measure, physical, usable_cpus(), workload))
    else:
        rows = [measure(setting) for setting in settings]
    best = measuring.fastest(rows, workload, physical)
    if best is None:
        raise WeblabError(rows[0].error)
    if as_json:
        print(json_text(report(path, workload, rows, best, bandwidth, saved=save), indent=2))
    else:
        _print(path, workload, rows, best, bandwidth)
    if any(speed and speed.unsteady for row in rows for speed in (row.prompt, row.generation)):
        _say(_("The repetitions differ much: is something else running? Measure again when the machine is idle."))
    if save:
        if path == demo_model():
            _say(_("The demo fits into the processor's caches: what is best for it may be bad for a real model."))
        setting = measuring.setting_to_save(rows, best)
        save_setting(setting, workload.name)
        _say(_("Saved as this machine's default: {setting}").format(setting=_describe(setting)))


def report(
    path: Path, workload: "Workload", rows: "Iterable[Row]", best: "Row", bandwidth: float, *, saved: bool
) -> dict[str, Any]:
    """The JSON: speeds in tokens per second, sizes in bytes, bandwidth in bytes per second."""

    def as_object(row: "Row") -> dict[str, Any]:
        return asdict(row.setting) | {
            "prompt": row.prompt and asdict(row.prompt),
            "generation": row.generation and asdict(row.generation),
            "bytes_per_token": row.bytes_per_token,
            "bandwidth_share": row.bandwidth_share(bandwidth),
            "n_gpu_layers": row.n_gpu_layers,
            "error": row.error,
        }

    return {
        "model": {"name": path.stem, "path": str(path), "size": path.stat().st_size},
        "workload": asdict(workload),
        "bandwidth": bandwidth,
        "rows": [as_object(row) for row in rows],
        "best": asdict(best.setting),
        "saved": saved,
    }


def _print(path: Path, workload: "Workload", rows: "Iterable[Row]", best: "Row", bandwidth: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    console.print(
        _("{model}: {n_prompt} tokens of prompt, {n_generate} of answer, median of {n} (slowest to fastest)").format(
            model=path.stem, n_prompt=workload.n_prompt, n_generate=workload.n_generate, n=workload.repetitions
        )
    )
    console.print(_("Memory bandwidth: {speed:.1f} GB/s").format(speed=bandwidth / 1e9))
    console.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for title in (_("Threads"), _("KV"), _("Flash attention"), _("Repacking"), _("Batch")):
        table.add_column(title, justify="right")
    for title in (_("Prompt, tokens/s"), _("Answer, tokens/s"), _("Share of bandwidth")):
        table.add_column(title, justify="right")
    for row in rows:
        share = row.bandwidth_share(bandwidth)
        table.add_row(
            "*" if row is best else "",
            str(row.setting.n_threads),
            row.setting.kv_type,
            _on_off(row.setting.flash_attention),
            _on_off(row.setting.repack),
            str(row.setting.n_batch or "-"),
            _speed(row.prompt),
            _speed(row.generation),
            "-" if share is None else f"{share:.0%}",
        )
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"{_describe(row.setting)}: {row.error}")


def _speed(speed: "Speed | None") -> str:
    return "-" if speed is None else f"{speed.median:.2f} ({speed.lowest:.2f} - {speed.highest:.2f})"


def _describe(setting: "Setting") -> str:
    text = _("threads {n}, KV cache {kv_type}, flash attention {flash}, repacking {repack}").format(
        n=setting.n_threads,
        kv_type=setting.kv_type,
        flash=_on_off(setting.flash_attention),
        repack=_on_off(setting.repack),
    )
    return text if setting.n_batch is None else _("{settings}, batch {n}").format(settings=text, n=setting.n_batch)


def _on_off(value: bool) -> str:
    return _("on") if value else _("off")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parsed(option: str, text: str, parse: Callable[[str], T], expected: str) -> list[T]:
    """The parts of a list between commas, each once. WeblabError for one that `parse` refuses with a ValueError."""
    try:
        return list(dict.fromkeys(parse(part.strip()) for part in text.split(","))) if text else []
    except ValueError:
        raise WeblabError(
            _("{option} takes {expected}, not {text!r}.").format(option=option, expected=expected, text=text)
        ) from None


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _switch(text: str) -> bool:
    return {"on": True, "off": False}[_one_of(("on", "off"))(text)]


def _one_of(choices: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse
