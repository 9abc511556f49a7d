"""`weblab-local doctor --self-test`: the devices as a table or JSON on stdout, the progress on stderr."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.signatures import command
from weblab_local.i18n import _
from weblab_local.sizes import memory_share

if TYPE_CHECKING:
    from weblab_local.diagnosis.self_test import DeviceResult, SelfTest


def run(workers: Sequence[str], *, as_json: bool) -> bool:
    """Test and print; whether every device is right."""
    from weblab_local.diagnosis.self_test import self_test

    tested = self_test(workers, lambda name: _say(_("Testing {device}").format(device=name)))
    if as_json:
        print(json.dumps(tested.as_json(), ensure_ascii=False, indent=2))
    else:
        _print(tested)
    return tested.ok


@command
def self_test_device(
    *,
    device: Annotated[str, typer.Option(help="A device's name; without, the devices are listed.")] = "",
    rpc: Annotated[str, typer.Option(help="Workers, as host:port,...")] = "",
) -> None:
    """Do a device's part of `doctor --self-test`, which starts this in a process of its own, and print it as JSON."""
    from weblab_local.diagnosis.device_run import listed, run_on

    workers = tuple(filter(None, rpc.split(",")))
    print(json.dumps(run_on(device, workers).as_json() if device else listed(workers)))


def _print(tested: "SelfTest") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    versions = tested.versions
    console.print(f"weblab-local {versions.weblab_local}, Python {versions.python}, {versions.os}")
    console.print(
        f"llama-cpp-python {versions.llama_cpp_python}, llama.cpp {versions.llama_cpp}: {', '.join(tested.backends)}"
    )
    console.print(tested.processor)
    console.print()
    if tested.error:
        console.print(_("llama.cpp does not run:"))
        console.print(tested.error)
        return
    table = Table(box=None, pad_edge=False)
    for title in (_("Device"), _("Description")):
        table.add_column(title)
    for title in (
        _("Right answers"),
        _("Mean KL"),
        _("Prompt, tokens/s"),
        _("Answer, tokens/s"),
        _("Memory (planned)"),
    ):
        table.add_column(title, justify="right")
    table.add_column("")
    for result in tested.results:
        table.add_row(*_row(result))
    console.print(table)
    for result in tested.results:
        for problem in result.problems:
            console.print(f"\n{result.device.name}: {problem}")
    if all(result.device.kind == "cpu" for result in tested.results):
        console.print("\n" + _("llama.cpp finds no device but the CPU. `weblab-local doctor` says what to change."))


def _row(result: "DeviceResult") -> list[str]:
    device, measured = result.device, result.run
    verdict = (
        _("right") if result.ok else _("crashed") if result.crashed else _("WRONG") if measured else _("does not run")
    )
    if measured is None:
        return [device.name, device.description, "-", "-", "-", "-", "-", verdict]
    return [
        device.name,
        device.description,
        f"{result.right_answers}/{result.n_answers}",
        "-" if result.mean_kl is None else f"{result.mean_kl:.1e}",
        f"{measured.prompt_speed:.1f}",
        f"{measured.generation_speed:.1f}",
        f"{memory_share(measured.memory)} ({memory_share(measured.planned_memory)})",
        verdict,
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
