"""`weblab-local doctor`: what is here and what to change, as text or JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.signatures import command
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama.compatibility import is_tested
from weblab_local.sizes import memory_size, model_size
from weblab_local.streams import json_text

if TYPE_CHECKING:
    from weblab_local.diagnosis.advice import Advice
    from weblab_local.diagnosis.findings import ModelReport, Report


@command
def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Run the demo on every device and see whether each computes what it should."),
    ] = False,
    rpc: Annotated[
        str,
        typer.Option(metavar="HOST:PORT,...", help="Machines running rpc-worker, to be tested too. For --self-test."),
    ] = "",
) -> None:
    """Check the installation, this machine and the models, and advise what to change."""
    workers = tuple(filter(None, rpc.split(",")))
    if workers and not self_test:
        raise WeblabError(_("--rpc is for --self-test."))
    if self_test:
        from weblab_local.cli import self_test as testing

        raise typer.Exit(0 if testing.run(workers, as_json=as_json) else 1)
    from rich.console import Console

    from weblab_local.diagnosis.advice import advise
    from weblab_local.diagnosis.doctor import examine

    report = examine()
    advice = advise(report)
    if as_json:
        value = report.as_json() | {"advice": [asdict(one) for one in advice]}
        print(json_text(value, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for title, lines in sections(report, advice):
            console.print(title, style="bold", markup=False)
            for line in lines:
                console.print(f"  {line}", markup=False)
            console.print()
    raise typer.Exit(0 if report.can_run else 1)


def sections(report: "Report", advice: "list[Advice]") -> Iterable[tuple[str, list[str]]]:
    """Titles, and the lines under each."""
    yield _("Installation"), _installation(report)
    yield _("This machine"), _machine(report)
    yield _("Models"), [line for model in report.models for line in _model(model)]
    yield _("What to change"), [line for one in advice for line in _advice(one)] or [_("Nothing.")]


def _installation(report: "Report") -> list[str]:
    versions, llama_cpp = report.versions, report.llama_cpp
    lines = [
        f"weblab-local {versions.weblab_local}, Python {versions.python}, {versions.os}",
        f"llama-cpp-python {_version(versions.llama_cpp_python)}"
        + (f", llama.cpp {versions.llama_cpp}, ggml {versions.ggml}" if versions.llama_cpp else ""),
        _("Backends compiled in: {names}").format(names=", ".join(llama_cpp.backends) or _("none")),
    ]
    if llama_cpp.system_info:
        lines.append(_("Compiled with: {features}").format(features=_features(llama_cpp.system_info)))
    if llama_cpp.cpu_variant:
        lines.append(_("Picked for this processor: {variant}").format(variant=llama_cpp.cpu_variant))
    if llama_cpp.error:
        lines += [_("llama.cpp does not run:"), *_indented(llama_cpp.error)]
    elif report.answer.ok:
        lines.append(_("Tried: {model} answers.").format(model=report.answer.model))
    else:
        lines += [
            _("Tried: {model} does not answer:").format(model=report.answer.model),
            *_indented(report.answer.error),
        ]
    return lines


def _version(llama_cpp_python: str) -> str:
    """The version, and whether it was tested."""
    if not llama_cpp_python:
        return _("not installed")
    return f"{llama_cpp_python} ({_('tested') if is_tested(llama_cpp_python) else _('not tested')})"


def _features(system_info: str) -> str:
    """`CPU : AVX = 1 | AVX2 = 1` as `CPU: AVX AVX2`."""
    words = [part.removesuffix(" = 1") for part in system_info.split(" | ")]
    return " ".join(words).replace(" : ", ": ")


def _machine(report: "Report") -> list[str]:
    cpu = report.processor
    lines = [
        _("Processor: {name}; {physical} cores, {performance} of them fast; {usable} of {logical} CPUs usable").format(
            name=cpu.name,
            physical=cpu.physical,
            performance=cpu.performance,
            usable=cpu.usable,
            logical=cpu.logical,
        )
        + (_(", {quota:.1f} CPUs' worth of time").format(quota=cpu.quota) if cpu.quota is not None else ""),
        _("It has: {features}").format(features=" ".join(cpu.features) or _("none")),
        _("Threads that compute: {n}").format(n=cpu.threads)
        + (" (" + _("saved by bench") + ")" if report.saved else " (" + _("bench --save finds the best") + ")"),
        _("Memory: {available} of {total} available").format(
            available=memory_size(report.memory_available), total=memory_size(report.memory_total)
        ),
    ]
    for device in report.devices:
        if device.kind != "cpu":
            text = _("Device {name} ({backend}): {description}, {free} of {total} free")
            lines.append(
                text.format(
                    name=device.name,
                    backend=device.backend,
                    description=device.description,
                    free=memory_size(device.free),
                    total=memory_size(device.total),
                )
            )
    if not any(device.kind in ("gpu", "igpu") for device in report.devices):
        cards = ", ".join(report.cards)
        lines.append(
            _("No graphics card that llama.cpp uses (here: {cards})").format(cards=cards)
            if cards
            else _("No graphics card that llama.cpp uses")
        )
    lines.append(
        _("Disk: {free} of {total} free for {folder}").format(
            free=model_size(report.disk.free), total=model_size(report.disk.total), folder=report.disk.folder
        )
    )
    return lines


def _model(model: "ModelReport") -> list[str]:
    marks = [model_size(model.size), model.mixture]
    marks += [_("default")] if model.is_default else []
    marks += [_("with manifest") if model.has_manifest else _("without manifest")] if model.name != "demo" else []
    lines = [f"{model.name}: {', '.join(filter(None, marks))}"]
    if model.plan:
        parts = ", ".join(
            _("{n} of {all} layers on {device}").format(n=part.n_layers, all=model.plan.n_layers, device=part.device)
            for part in model.plan.parts
            if part.n_layers
        )
        lines.append("  " + _("fits: {parts}").format(parts=parts))
        lines += [f"  {reason}" for reason in model.plan.reasons]
    elif model.error:
        lines.append("  " + (_("does not fit:") if model.fits is False else _("cannot be used:")))
        lines += [f"  {line}" for line in _indented(model.error)]
    return lines


def _advice(advice: "Advice") -> list[str]:
    return [f"- {advice.problem}", f"    {advice.command}"]


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
