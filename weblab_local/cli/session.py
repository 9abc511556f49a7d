"""What commands that run a model have in common: loading it with progress, and saying what it is."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from weblab_local.cli.options import RuntimeOptions
from weblab_local.engine.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.i18n import _

if TYPE_CHECKING:
    from weblab_local.machine.tuning import WorkloadName

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it."""


def gpu_layers(text: str) -> int | Literal["auto"]:
    """The value of --n-gpu-layers: "auto" or a number. Raises WeblabError for anything else."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise WeblabError(_('--n-gpu-layers takes "auto" or a number, not {value!r}.').format(value=text)) from None


def open_model(
    model: str | None,
    runtime: RuntimeOptions,
    *,
    n_ctx: int | None,
    n_parallel: int = 1,
    workload: "WorkloadName" = "chat",
) -> Engine:
    """Load a model for a workload; at a terminal with a bar on stderr. Ctrl-C cancels the loading."""
    from weblab_local.models.loading import load
    from weblab_local.models.store import split_scale

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty()
    interrupted = threading.Event()
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar,
        cancelled_by_ctrl_c(interrupted.set),  # a KeyboardInterrupt in a callback from C would be lost
    ):
        task = bar.add_task(_("Loading the model"), total=1.0)

        def on_progress(share: float) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            bar.update(task, completed=share)

        engine = load(
            model,
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            n_gpu_layers=gpu_layers(runtime.n_gpu_layers),
            n_threads=runtime.threads,
            kv_type=runtime.kv_type,
            drafts=runtime.drafts,
            rpc=tuple(filter(None, runtime.rpc.split(","))),
            lora=[split_scale(adapter) for adapter in runtime.lora or ()],
            workload=workload,
            on_progress=on_progress,
        )
    if interrupted.is_set():
        engine.close()
        raise KeyboardInterrupt
    return engine


@contextmanager
def cancelled_by_ctrl_c(cancel: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `cancel` instead of raising KeyboardInterrupt, which could lose a chunk on its way. A second raises.

    Where whoever started this program has it ignore Ctrl-C, it still does. In an app with handlers of its own that are
    not Python's, and outside of the main thread, which alone may set them, Ctrl-C is left as it is.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        cancel()

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def licence_line(engine: Engine) -> str:
    """The model's licence and what it means for whoever uses it, in a line."""
    licence = engine.licence or _("unknown")
    if "-nc" in licence:
        return _("Licence of the model: {licence}, non-commercial use only.").format(licence=licence)
    return _("Licence of the model: {licence}.").format(licence=licence)


def reading_progress(done: int, total: int) -> None:
    """Say on a terminal's stderr how much of a long prompt is read; called on the worker thread."""
    if total >= 256 and sys.stderr.isatty():
        text = _("reading {done} of {total} tokens").format(done=done, total=total)
        blanks = " " * cell_len(text)  # Windows' older consoles print the sequence that erases a line
        sys.stderr.write(f"{text}\r{blanks}\r" if done >= total else f"{text}\r")
        sys.stderr.flush()
