"""Options that several commands share: single ones, and groups (see `signatures`)."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from weblab_local.engine.sampling import SamplingParams
from weblab_local.i18n import n_
from weblab_local.llama.kv_types import KvType

Model = Annotated[
    str | None,
    typer.Option(
        metavar=n_("MODEL"),
        help='A GGUF file, the name of a model in the store, or "demo".',
        show_default="the store's default, else its newest",
    ),
]
NCtx = Annotated[
    int | None,
    typer.Option(
        min=16,
        help="Size of the context in tokens: the conversation and the answer share it.",
        show_default="2048, or as much as fits into memory",
    ),
]
Special = Annotated[
    bool,
    typer.Option("--special", help="Take the special tokens that a raw text names for tokens instead of text."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar=n_("FILE[=SCALE]"),
        help="A LoRA adapter to compute with, made by python -m convert.lora.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Number of CPU threads.", show_default="saved by bench, else the physical cores"),
]


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen and when an answer ends. Names and defaults are those of SamplingParams."""

    temperature: Annotated[
        float, typer.Option(min=0.0, help="Higher is more varied; 0 always takes the most likely token (greedy).")
    ] = SamplingParams.temperature
    top_k: Annotated[int, typer.Option(min=0, help="Choose from the k most likely tokens only; 0 turns this off.")] = (
        SamplingParams.top_k
    )
    top_p: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Choose only from the most likely tokens whose probabilities add up to this; 1 turns this off.",
        ),
    ] = SamplingParams.top_p
    min_p: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Leave out tokens less likely than this fraction of the most likely one's probability; 0 turns this "
            "off.",
        ),
    ] = SamplingParams.min_p
    repeat_penalty: Annotated[
        float,
        typer.Option(min=0.01, help="Above 1, tokens that already occurred become less likely; 1 turns this off."),
    ] = SamplingParams.repeat_penalty
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of the random numbers; the same seed gives the same answer.", show_default="random"
        ),
    ] = SamplingParams.seed
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = SamplingParams.max_tokens
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer and is left out of it.")] = None

    def params(self) -> SamplingParams:
        """The parameters for the engine. Raises SamplingError for values that make no sense."""
        return SamplingParams(**asdict(self) | {"stop": self.stop or ()})


@dataclass(frozen=True)
class RuntimeOptions:
    """Where and how a model is computed."""

    n_gpu_layers: Annotated[
        str, typer.Option(metavar=n_("auto|INTEGER"), help="Layers to put on the GPU; auto puts as many as fit there.")
    ] = "auto"
    threads: Threads = None
    kv_type: Annotated[
        KvType | None,
        typer.Option(
            help="Data type of the KV cache; q8_0 and q4_0 take less memory.", show_default="saved by bench, else f16"
        ),
    ] = None
    drafts: Annotated[
        bool | None,
        typer.Option(
            "--drafts/--no-drafts",
            help="Guess tokens from the text so far and check several at once: for all answers, or for none.",
            show_default="for answers drawn without a seed",
        ),
    ] = None
    rpc: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT,...",
            help="Machines running rpc-worker, to take over some of the layers. Trusted networks only.",
        ),
    ] = ""
    lora: Lora = None
