"""The whole road: find the checkpoint, leave alone what is up to date, download, plan, convert."""

import importlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from convert.errors import ConversionError, OutputError
from convert.model.find_checkpoint import announce
from convert.model.merging import merged
from convert.model.preview import preview
from convert.progress import say, shown
from convert.quantization import quantize
from convert.quantization.imatrix import ImatrixFile, open_imatrix
from convert.quantization.mixtures import ALL, Mixture, mixture
from convert.source import download
from convert.source.checkpoint import Checkpoint, open_checkpoint, require_checkpoint_folder
from convert.source.lora import Lora, open_lora
from convert.source.low_disk import LowDiskFolder
from convert.source.source import Adapter, ChatTemplateChoice, Source, local_source, merged_name, model_card
from convert.source.tokenizer_files import TOKENIZER_FILES, require_tokenizer_folder
from convert.writing import output
from convert.writing.pipeline import Verify, convert, source_record
from convert.writing.plan import Plan, check_room, make_plan
from weblab_local.errors import WeblabError
from weblab_local.files import allocated, partial_path, sha256
from weblab_local.models.store import IMATRIX_SUFFIX, models_dir
from weblab_local.shell import quoted
from weblab_local.sizes import byte_count

if TYPE_CHECKING:
    from convert.calibration.calibrate import CalibrationTexts

    Importance = ImatrixFile | CalibrationTexts | None

FORECAST_WEIGHTS: Final = 10**9
"""Models from this size on take long enough to say how long before."""

AUTO: Final = "auto"
"""In the place of an importance matrix: collect one on the calibration texts first."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    source: str
    revision: str | None
    quantizations: Sequence[str]
    output_folder: Path
    low_disk: bool = False
    force: bool = False
    chat_template: ChatTemplateChoice = "auto"
    threads: int | None = None
    imatrix: Path | Literal["auto"] | None = None
    tokenizer: Path | None = None
    """The folder of the tokenizer's files, where they are not beside the weights."""

    lora: Sequence[str] = ()
    """LoRAs to merge, each ADAPTER or ADAPTER=SCALE: a folder, or an id on the Hub."""


def run(request: Request) -> list[Path]:
    """Convert; the paths of all outputs asked for, whether made now or up to date already. Raises ConversionError."""
    mixtures = list(dict.fromkeys(mixture(name) for name in request.quantizations))
    if not mixtures:
        raise ConversionError("No quantization was given.", f"Choose from: {', '.join(ALL)}.")
    compensated = next((found.name for found in mixtures if found.compensated), "")
    if request.low_disk and compensated:
        raise ConversionError(
            f"{compensated} reads the checkpoint again when it is converted, and --low-disk keeps none of it.",
            "Leave --low-disk out, or choose --quant Q4_K_M (make convert QUANT=Q4_K_M).",
        )
    require_tokenizer_folder(request.tokenizer)
    imatrix = _importance(request)
    loras = [open_lora(adapter, say) for adapter in request.lora]
    try:
        request.output_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot make the folder {request.output_folder}: {error}.", "Choose another --output."
        ) from None
    with output.exclusive(request.output_folder):
        try:
            if Path(request.source).expanduser().exists() or not download.is_hub_id(request.source):
                return _from_folder(request, mixtures, imatrix, loras)
            return _from_hub(request, mixtures, imatrix, loras)
        except OSError as error:
            raise ConversionError(
                f"Reading or writing failed: {error}.", "Check the disks' health and that you may read these files."
            ) from error


def _importance(request: Request) -> "Importance":
    if request.imatrix is None:
        return None
    if request.imatrix != AUTO:
        return open_imatrix(request.imatrix.expanduser())
    if request.low_disk:
        raise ConversionError(
            "--imatrix auto runs the whole checkpoint, of which --low-disk never has more than one shard.",
            "Leave one of them out, or give --imatrix a finished file.",
        )
    from convert.calibration.calibrate import calibration_texts  # torch

    return calibration_texts()


def _from_folder(
    request: Request, mixtures: Sequence[Mixture], imatrix: "Importance", loras: Sequence[Lora]
) -> list[Path]:
    folder = Path(request.source).expanduser()
    if request.revision is not None or request.low_disk:
        raise ConversionError("--revision and --low-disk are for checkpoints from the Hub, not for a folder.")
    require_checkpoint_folder(folder)
    source = local_source(folder)
    checkpoint = open_checkpoint(source.folder, tokenizer=request.tokenizer, report=say)
    checkpoint = merged(checkpoint, source, loras, say)
    plan = _plan(request, source, checkpoint, mixtures, imatrix if isinstance(imatrix, ImatrixFile) else None)
    recorded = source_record(checkpoint, plan)
    wanted = [
        planned
        for planned in plan.outputs
        if not _is_done(
            request, planned.path, recorded, _recipe(request, planned.mixture, imatrix, checkpoint.adapters)
        )
    ]
    if wanted:
        _convert(request, source, checkpoint, plan.only(wanted), imatrix)
    return [o.path for o in plan.outputs]


def _from_hub(
    request: Request, mixtures: Sequence[Mixture], imatrix: "Importance", loras: Sequence[Lora]
) -> list[Path]:
    hub = download.find(request.source, request.revision, say, with_tokenizer=request.tokenizer is None)
    base = hub.repository.rpartition("/")[2]
    adapters = [lora.adapter for lora in loras]
    name = merged_name(base, adapters)
    known = {"repository": hub.repository, "revision": hub.commit}
    wanted = [
        m
        for m in mixtures
        if not _is_done(request, _path(request, name, m), known, _recipe(request, m, imatrix, adapters))
    ]
    if not wanted:
        return [_path(request, name, m) for m in mixtures]
    with ExitStack() as stack:
        folder = None
        if request.low_disk and hub.missing_bytes:
            folder = stack.enter_context(LowDiskFolder(hub, request.output_folder, say))
            small, missing, shared = folder.fetch_small(), folder.missing_bytes, True
        else:
            announce(hub)
            small, missing = download.fetch_small(hub, say), hub.missing_bytes
            shared = download.shares_disk_with_cache(request.output_folder)
        known_imatrix = imatrix if isinstance(imatrix, ImatrixFile) else None
        source = Source(base, small, hub.repository, hub.commit)
        previewed = merged(preview(small, request.tokenizer), source, loras, say)
        plan = _plan(request, source, previewed, wanted, known_imatrix)
        check_room(plan, request.output_folder, missing if shared else 0)
        if folder is not None:
            checkpoint = folder.open(request.tokenizer)
            extra_disk = folder.missing_bytes
        else:
            checkpoint = open_checkpoint(download.download(hub, say), tokenizer=request.tokenizer)
            extra_disk = 0
        checkpoint = merged(checkpoint, source, loras, lambda _: None)  # which has said what there is to say
        plan = _plan(request, source, checkpoint, wanted, known_imatrix)
        _convert(request, source, checkpoint, plan, imatrix, extra_disk)
    note = download.cache_note(hub)
    if note:
        say(note)
    return [_path(request, name, m) for m in mixtures]


def _path(request: Request, name: str, mixture: Mixture) -> Path:
    return request.output_folder / f"{name}-{mixture.name}.gguf"


def _recipe(request: Request, mixture: Mixture, imatrix: "Importance", adapters: Sequence[Adapter]) -> dict[str, Any]:
    recipe: dict[str, Any] = {"mixture": mixture.name, "chat_template": request.chat_template}
    if mixture.compensated:
        recipe |= {"compensation": _compensation(mixture).recipe()}
    if request.tokenizer is not None:
        files = [path for name in TOKENIZER_FILES if (path := request.tokenizer / name).is_file()]
        recipe |= {"tokenizer": {path.name: sha256(path) for path in files}}
    if adapters:
        recipe |= {"adapters": [adapter.record for adapter in adapters]}
    return recipe if imatrix is None else recipe | {"imatrix": imatrix.record}


def _compensation(mixture: Mixture) -> ModuleType:
    """The module that rounds this one; it needs Numba and torch."""
    try:
        return importlib.import_module("convert.calibration.compensation")
    except ImportError as error:
        raise ConversionError(
            f"{mixture.name} cannot be made here: {error}.",
            "Run make install, or choose --quant Q4_K_M (make convert QUANT=Q4_K_M).",
        ) from None


def _is_done(request: Request, path: Path, source: dict[str, Any], recipe: dict[str, Any]) -> bool:
    """Whether the output is there and up to date. Raises OutputError when something else is there."""
    if request.force:
        return False
    if output.is_up_to_date(path, source, recipe):
        say(f"{path} is up to date.")
        return True
    if path.exists():
        raise OutputError(
            f"{path} exists already, and was not made from this checkpoint as it is now with these options.",
            "Give --force to replace it (make convert FORCE=1), or choose another --output.",
        )
    return False


def _plan(
    request: Request,
    source: Source,
    checkpoint: Checkpoint,
    mixtures: Sequence[Mixture],
    imatrix: ImatrixFile | None,
) -> Plan:
    card = model_card(source, request.chat_template, checkpoint.adapters)
    return make_plan(checkpoint, card, mixtures, request.output_folder, request.threads, imatrix)


def _calibrated(
    request: Request, source: Source, checkpoint: Checkpoint, plan: Plan, texts: "CalibrationTexts"
) -> Plan:
    """The plan with an importance matrix, which is made now or was made of the same before."""
    from convert.calibration.calibrate import calibrated  # torch

    check_room(plan, request.output_folder)  # what cannot be converted need not be calibrated
    imatrix = calibrated(checkpoint, texts, request.output_folder / f"{plan.card.name}{IMATRIX_SUFFIX}", request.force)
    return _plan(request, source, checkpoint, [output.mixture for output in plan.outputs], imatrix)


def _convert(
    request: Request,
    source: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    importance: "Importance",
    extra_disk: int = 0,
) -> None:
    if importance is not None and not isinstance(importance, ImatrixFile):
        plan = _calibrated(request, source, checkpoint, plan, importance)
    hparams = plan.hparams
    say(
        f"{plan.card.name}: GPT-NeoX, {hparams.num_hidden_layers} layers, hidden size {hparams.hidden_size}, "
        f"{plan.n_weights / 1e9:.3g} billion weights"
    )
    for adapter in checkpoint.adapters:
        say(f"  with the adapter {adapter.name}, scale {adapter.scale:g}, merged into {source.name}")
    refine = None
    compensated = [planned.mixture for planned in plan.outputs if planned.mixture.compensated]
    if compensated:
        refine = _compensation(compensated[0]).Refinement(checkpoint, plan)
        extra_disk += refine.disk
    for planned in plan.outputs:
        say(f"  {planned.mixture.name}: {planned.size} bytes ({byte_count(planned.size)}) to {planned.path}")
        if refine is not None and refine.resumes(planned):
            say(f"  goes on after the {refine.n_finished(planned)} layers that an interrupted run has rounded")
            extra_disk -= allocated(partial_path(planned.path))
        else:
            output.remove_leftovers(planned.path)
        output.unverified_path(planned.path).unlink(missing_ok=True)
    room = check_room(plan, request.output_folder, extra_disk, refine.memory if refine is not None else 0)
    say(
        f"disk: {byte_count(room.disk)} needed, {byte_count(room.disk_free)} free; "
        f"memory: about {byte_count(room.memory)} needed, {byte_count(room.memory_available)} available; "
        f"{plan.n_threads} threads"
    )
    if plan.vocabulary.left_out:
        say(
            f"Left out of the vocabulary, because the embedding has no rows for them: "
            f"{', '.join(plan.vocabulary.left_out)}."
        )
    if not plan.card.chat_template:
        say("No chat template: a base model, or one whose template is not known (see --chat-template).")
    if plan.imatrix is not None:
        _say_imatrix(plan.imatrix, plan.without_importance)
    quantize.prepare({entry.ggml_type for planned in plan.outputs for entry in planned.tensors.values()}, say)
    if refine is not None:
        names = " and ".join(mixture.name for mixture in compensated)
        say(
            f"{names}: when all else is written, the full model and the rounded one read {refine.n_tokens} tokens of "
            "calibration text, layer by layer, and each layer is rounded by what both made of them. "
            "Interrupted, the same command goes on with the layer it had reached."
        )
    if plan.n_weights >= FORECAST_WEIGHTS and checkpoint.release is None:
        _say_forecast(plan)
    verify = _verification(request, checkpoint, plan)

    def recipe(mixture: Mixture) -> dict[str, Any]:
        return _recipe(request, mixture, importance, checkpoint.adapters)

    results = convert(checkpoint, plan, recipe, shown, refine, verify)
    for result in results:
        say(f"{result.path}: {byte_count(result.size)}, sha256 {result.sha256}")
    if plan.card.licence:
        say(f"Licence of the model: {plan.card.licence}" + _non_commercial(plan.card.licence))
    for adapter in checkpoint.adapters:
        licence = adapter.licence or "its files do not say"
        say(f"Licence of the adapter {adapter.name}: {licence}" + _non_commercial(adapter.licence))


def _say_forecast(plan: Plan) -> None:
    try:
        duration = importlib.import_module("convert.calibration.duration")
    except ImportError:  # no Numba or no torch: then W4, which it is about, cannot be made here either
        return
    say(duration.forecast(plan))


def _verification(request: Request, checkpoint: Checkpoint, plan: Plan) -> Verify | None:
    """What compares the results with the checkpoint before they get their names; None where that is not done."""
    if os.environ.get("VERIFY") == "0":
        say("The result is not compared with the checkpoint: VERIFY=0.")
        return None
    if checkpoint.release is not None:
        say("The result is not compared with the checkpoint: --low-disk keeps none of it.")
        return None

    def verify(paths: Sequence[Path]) -> Sequence[Mapping[str, Any] | None]:
        from convert.verification.report import sentence
        from convert.verification.verify import short_verification

        say("comparing the result with the checkpoint on a few texts (VERIFY=0 leaves that out)")
        try:
            report = short_verification(checkpoint, plan.card.name, paths, request.threads)
        except KeyboardInterrupt:
            say(
                "interrupted: the result is finished and kept, but not compared with the checkpoint. To compare it:\n"
                + _comparison(request, plan)
            )
            raise
        except (WeblabError, OSError) as error:
            say(f"The result could not be compared with the checkpoint, and is kept as it is: {error}")
            return [None] * len(paths)
        for file in report.files:
            say(sentence(file).replace(".gguf.partial", ".gguf"))
        figures = report.figures()
        return [figures[path.name] for path in paths]

    return verify


def _comparison(request: Request, plan: Plan) -> str:
    """Return the command that compares the plan's outputs with the checkpoint."""
    revision = [] if request.revision is None else ["--revision", request.revision]
    files = [str(planned.path) for planned in plan.outputs]
    tokenizer = [] if request.tokenizer is None else ["--tokenizer", str(request.tokenizer)]
    lora = [argument for adapter in request.lora for argument in ("--lora", adapter)]
    return quoted("python", "-m", "convert.verify", request.source, *files, *revision, *tokenizer, *lora)


def _say_imatrix(imatrix: ImatrixFile, without: Sequence[str]) -> None:
    texts = ", ".join(imatrix.datasets) or "texts that it does not name"
    say(f"importance matrix {imatrix.name}: {imatrix.matrix.n_tokens} tokens of {texts}")
    if without:
        more = f" and {len(without) - 3} others" if len(without) > 3 else ""
        say(f"It has no data for {', '.join(without[:3])}{more}, which will be quantized without.")


def next_step(paths: Sequence[Path]) -> str:
    """What to type to talk with the first of `paths`."""
    program = shutil.which("weblab-local", path=str(Path(sys.executable).parent))  # finds the .exe on Windows
    command = "weblab-local" if shutil.which("weblab-local") or not program else _short(Path(program))
    in_store = paths[0].parent.resolve() == models_dir().resolve()
    return "Next: " + quoted(command, "chat", *([] if in_store else ["--model", _short(paths[0])]))


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _non_commercial(licence: str) -> str:
    return " (non-commercial use only; name the authors wherever you use it)" if "-nc" in licence else ""
