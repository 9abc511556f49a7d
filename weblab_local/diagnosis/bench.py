"""Speed of the prompt and of generation, over settings of one model on this machine."""

import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weblab_local.engine.engine import DEFAULT_N_CTX, Engine
from weblab_local.engine.generation import complete
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama.kv_types import KvType
from weblab_local.machine.tuning import PROMPT_BATCH, Setting, WorkloadName

KV_MARGIN, MARGIN = 0.05, 0.02
"""By so much of the time something other than the default has to be faster to be called better: a KV cache in 8 bits
changes the model a little, and small differences are noise."""

PROMPT_BATCHES = (128, 256, 512)
"""Tokens computed at once that are worth a try; a prompt that is measured is no longer."""

_UNSTEADY = 0.2
"""Share of the median; on an idle machine repetitions differ by a few percent."""

_WARM_UP = 16
"""Tokens of a first prompt that is not counted: it reads the file into memory."""


@dataclass(frozen=True)
class Workload:
    """What is measured: tokens of prompt and answer, and how often."""

    n_prompt: int = 256
    n_generate: int = 64
    repetitions: int = 3
    name: WorkloadName = "chat"
    n_parallel: int = 1
    """Answers at the same time."""

    @classmethod
    def of(cls, name: WorkloadName, n_prompt: int | None, n_generate: int | None, repetitions: int) -> "Workload":
        """What stands for a workload; the numbers of tokens where they are given."""
        usual_prompt, usual_generate, n_parallel = _USUAL[name]
        return cls(n_prompt or usual_prompt, n_generate or usual_generate, repetitions, name, n_parallel)

    def default(self, physical: int) -> Setting:
        """The setting that the others have to beat."""
        return Setting(physical, n_batch=PROMPT_BATCH if self.name == "prompt" else None)


_USUAL: Mapping[WorkloadName, tuple[int, int, int]] = {
    "chat": (256, 64, 1),
    "prompt": (512, 2, 1),
    "serve": (256, 64, 4),
}
"""Tokens of prompt and answer, and answers at the same time: for "serve" as many as the server computes."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second over the repetitions."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, speeds: Sequence[float]) -> "Speed":
        """Sum up the repetitions."""
        return cls(statistics.median(speeds), min(speeds), max(speeds))

    @property
    def unsteady(self) -> bool:
        """Whether the repetitions differ so much that something else must have been computing."""
        return self.highest - self.lowest > _UNSTEADY * self.median


@dataclass(frozen=True)
class Row:
    """A setting and what it gave; without speeds, the error that it gave."""

    setting: Setting
    prompt: Speed | None = None
    generation: Speed | None = None
    bytes_per_token: int = 0
    """Weights and KV cache that are read for a token of the answer, halfway through it; 0 where several share them."""
    n_gpu_layers: int = 0
    error: str = ""

    def seconds(self, workload: Workload) -> float:
        """What the workload takes; infinite where it does not run."""
        if not self.prompt or not self.generation:
            return math.inf
        return workload.n_prompt / self.prompt.median + workload.n_generate / self.generation.median

    def bandwidth_share(self, bandwidth: float) -> float | None:
        """Share of the memory's bytes per second that generation reads; None where layers are on other devices, or
        several answers share what is read."""
        if self.generation is None or self.n_gpu_layers or not self.bytes_per_token:
            return None
        return self.generation.median * self.bytes_per_token / bandwidth


def thread_counts(physical: int, usable: int) -> list[int]:
    """Numbers of threads worth a try: half, all and twice the physical cores, within the CPUs that may be used."""
    return sorted({max(1, physical // 2), physical, min(usable, 2 * physical)})


def combinations(
    n_threads: Iterable[int],
    kv_types: Iterable[KvType],
    flash: Iterable[bool],
    repack: Iterable[bool],
    n_batch: Iterable[int | None] = (None,),
) -> list[Setting]:
    """Every combination that llama.cpp allows."""
    settings = (Setting(*values) for values in itertools.product(n_threads, kv_types, flash, repack, n_batch))
    return [setting for setting in settings if setting.allowed]


def sweep(measure_one: Callable[[Setting], Row], physical: int, usable: int, workload: Workload) -> Iterator[Row]:
    """The short way: from the default on one thing changed at a time, keeping what is better.

    For "prompt" the KV cache stays in f16, since scores would change with it, and the batch is searched; for the others
    it stays small, so that a prompt can be cancelled soon.
    """
    default = workload.default(physical)
    rows = [measure_one(default)]
    yield rows[0]
    changes: list[Callable[[Setting], list[Setting]]] = [
        lambda best: [replace(best, n_threads=count) for count in thread_counts(physical, usable)],
        lambda best: [replace(best, repack=False)],
        lambda best: (
            [replace(best, n_batch=n) for n in PROMPT_BATCHES]
            if workload.name == "prompt"
            else [replace(best, kv_type="q8_0")]
        ),
        lambda best: [replace(best, flash_attention=False)],
    ]
    for change in changes:
        best = fastest(rows, workload, physical)
        for setting in change(best.setting if best else default):
            if setting.allowed and setting not in [row.setting for row in rows]:
                rows.append(measure_one(setting))
                yield rows[-1]


def fastest(rows: Sequence[Row], workload: Workload, physical: int) -> Row | None:
    """The best row for the workload, the default having the benefit of the doubt. None where nothing ran."""
    running = [row for row in rows if not row.error]
    default = workload.default(physical)

    def judged(row: Row) -> float:
        setting = row.setting
        unusual = (setting.n_threads != physical) + (not setting.flash_attention) + (not setting.repack)
        unusual += setting.n_batch != default.n_batch
        quantized = setting.kv_type != "f16"
        return row.seconds(workload) / ((1 - MARGIN) ** unusual * (1 - KV_MARGIN) ** quantized)

    return min(running, key=judged, default=None)


def setting_to_save(rows: Sequence[Row], best: Row) -> Setting:
    """The best row's setting; its KV cache in 8 bits only where f16 was measured beside it and lost."""
    compared = any(row.setting.kv_type == "f16" and not row.error for row in rows)
    return best.setting if compared else replace(best.setting, kv_type="f16")


def measure(path: Path, setting: Setting, workload: Workload, lora: Sequence[tuple[str | Path, float]] = ()) -> Row:
    """Load the model with `setting` and the adapters of `lora` (file or name, scale), and time the workload.

    A setting that does not run gives its error.
    """
    from weblab_local.llama.adapters import adapter_bytes
    from weblab_local.machine.devices import list_devices
    from weblab_local.machine.footprint import batch_size
    from weblab_local.models.loading import load

    n_devices = sum(device.kind != "cpu" for device in list_devices())  # a batch that was saved is not meant by None
    try:
        with load(
            str(path),
            n_parallel=workload.n_parallel,
            n_threads=setting.n_threads,
            kv_type=setting.kv_type,
            flash_attention=setting.flash_attention,
            repack=setting.repack,
            n_batch=setting.n_batch or batch_size(workload.n_parallel, n_devices),
            lora=lora,
        ) as engine:
            speeds = timed(engine, workload)
            n_gpu_layers = engine.plan.n_gpu_layers if engine.plan else 0
            of_adapters = sum(adapter_bytes(engine.adapters).values())
    except WeblabError as error:
        return Row(setting, error=error.message)
    of_token = bytes_per_token(path, setting.kv_type, workload.n_prompt + workload.n_generate // 2)
    return Row(
        setting,
        prompt=Speed.of([prompt for prompt, _generation in speeds]),
        generation=Speed.of([generation for _prompt, generation in speeds]),
        bytes_per_token=0 if workload.n_parallel > 1 else of_token + of_adapters,
        n_gpu_layers=n_gpu_layers,
    )


def timed(engine: Engine, workload: Workload) -> list[tuple[float, float]]:
    """Return the speeds of prompt and generation in tokens per second, a pair for each repetition.

    Several answers at the same time are counted together, each part for as long as the slowest of them takes.
    """
    vocabulary, end = vocabulary_size(engine.path), int(engine.metadata.get("tokenizer.ggml.eos_token_id", 0))

    def one(number: int, n_prompt: int, n_generate: int) -> tuple[float, float]:
        params = SamplingParams(temperature=0, max_tokens=n_generate, logit_bias={end: -math.inf})
        numbers = range(number * workload.n_parallel, (number + 1) * workload.n_parallel)
        generations = [engine.stream(prompt_ids(each, n_prompt, vocabulary), params, raw=True) for each in numbers]
        stats = [complete(list(generation)).stats for generation in generations]
        return len(stats) * min(s.prompt_speed for s in stats), len(stats) * min(s.generation_speed for s in stats)

    one(0, min(_WARM_UP, workload.n_prompt), 2)
    return [one(number, workload.n_prompt, workload.n_generate) for number in range(1, workload.repetitions + 1)]


def prompt_ids(number: int, length: int, vocabulary: int) -> list[int]:
    """A prompt of random tokens. Two of different numbers begin differently, so that no KV cache serves both."""
    ordinary = range(2, vocabulary)
    rest = random.Random(number)
    return [ordinary[number % len(ordinary)], *(rest.choice(ordinary) for _index in range(length - 1))]


def bytes_per_token(path: Path, kv_type: KvType, n_cells: int) -> int:
    """Bytes that are read to compute one token beside `n_cells` others: all weights but the rows of the embedding that
    are not looked up, and the keys and values."""
    from weblab_local.llama.gguf_header import read_header
    from weblab_local.machine.footprint import Shape, kv_bytes, row_bytes

    header = read_header(path)
    shape = Shape.of(header)
    embedding = header.tensors["token_embd.weight"]
    weights = sum(tensor.nbytes for tensor in header.tensors.values()) - embedding.nbytes
    return weights + row_bytes(embedding.ggml_type, shape.n_embd) + kv_bytes(shape, kv_type, n_cells, shape.n_layer)


def vocabulary_size(path: Path) -> int:
    """Tokens of the vocabulary of the GGUF at `path`."""
    from weblab_local.llama.gguf_header import read_header
    from weblab_local.machine.footprint import Shape

    return Shape.of(read_header(path)).n_vocab


def check_workload(path: Path, workload: Workload) -> None:
    """Raise WeblabError for a workload that the model has no room for, ModelFileError for a file that is no model."""
    from weblab_local.llama.gguf_header import read_header
    from weblab_local.llama.gptneox import require_gptneox

    header = read_header(path)
    require_gptneox(header)
    room = min(DEFAULT_N_CTX // workload.n_parallel, header.hparam("context_length"))
    if workload.n_prompt + workload.n_generate > room:
        raise WeblabError(
            _("{n_prompt} tokens of prompt and {n_generate} of answer are too many; the context holds {room}.").format(
                n_prompt=workload.n_prompt, n_generate=workload.n_generate, room=room
            ),
            _("Give smaller numbers for --n-prompt and --n-generate."),
        )
