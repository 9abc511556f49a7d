"""What `doctor` found out, as values; sizes are in bytes. `weblab-local doctor --json` prints all of it."""

from dataclasses import asdict, dataclass
from typing import Any

from weblab_local.machine.tuning import Setting


@dataclass(frozen=True)
class Versions:
    """What is installed; "" for what is not, or cannot be asked."""

    weblab_local: str
    llama_cpp_python: str
    llama_cpp: str
    """The commit it was compiled from."""
    ggml: str
    python: str
    os: str


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp as compiled here. `error` says why it cannot be used."""

    backends: tuple[str, ...]
    """As in the names of its libraries: cpu, cuda, metal, vulkan, rpc."""
    system_info: str
    """`llama_print_system_info`."""
    error: str
    cpu_variant: str = ""
    """Of a portable build, which of its CPU backends was picked for this processor, like "haswell"."""
    switched_off: tuple[str, ...] = ()
    """What is not done with it though models run, a sentence each."""


@dataclass(frozen=True)
class Processor:
    """Cores and CPUs. `quota` is what control groups grant, in CPUs; None without a limit."""

    name: str
    logical: int
    physical: int
    performance: int
    """Physical cores of the fast kind."""
    usable: int
    """CPUs that affinity leaves to this process."""
    quota: float | None
    threads: int
    """That will compute."""
    features: tuple[str, ...]
    """What it has of what compilers make use of: AVX2, AVX512F and the like."""


@dataclass(frozen=True)
class DeviceMemory:
    """A device of ggml; bytes."""

    name: str
    description: str
    kind: str
    backend: str
    free: int
    total: int


@dataclass(frozen=True)
class Disk:
    """Where the store is; bytes."""

    folder: str
    free: int
    total: int


@dataclass(frozen=True)
class Part:
    """What a plan puts on a device."""

    device: str
    n_layers: int
    bytes: int


@dataclass(frozen=True)
class PlanSummary:
    """A plan that fits; bytes."""

    n_layers: int
    n_gpu_layers: int
    n_ctx: int
    kv_type: str
    flash_attention: bool
    total: int
    parts: tuple[Part, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ModelReport:
    """A model, and its plan or what is wrong with it."""

    name: str
    path: str
    size: int
    mixture: str
    is_default: bool
    has_manifest: bool
    plan: PlanSummary | None = None
    fits: bool | None = None
    """None where that is not known."""
    error: str = ""
    fitting_options: str = ""
    """Options with which a model that does not fit would."""
    smaller: str = ""
    """A mixture in which it would."""


@dataclass(frozen=True)
class Answer:
    """Whether a model gave an answer in a process of its own."""

    model: str
    ok: bool
    crashed: bool
    error: str


@dataclass(frozen=True)
class Report:
    """All of it."""

    versions: Versions
    llama_cpp: LlamaCpp
    processor: Processor
    memory_total: int
    memory_available: int
    devices: tuple[DeviceMemory, ...]
    cards: tuple[str, ...]
    """Makers of graphics cards that are in this machine, whether llama.cpp sees them or not."""
    disk: Disk
    models: tuple[ModelReport, ...]
    """The store's, then the demo."""
    answer: Answer
    saved: Setting | None
    """What `bench --save` found best here."""

    @property
    def can_run(self) -> bool:
        """Whether anything runs."""
        return self.answer.ok

    def as_json(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self) | {"can_run": self.can_run}
