"""Options that several commands share, and what they become."""

from typing import Annotated, Literal

import typer

from weblab_local.sampling import SamplingParams

Model = Annotated[
    str | None,
    typer.Option("--model", help='A GGUF\'s path, a name in the store, or "demo".', show_default="the newest"),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding.")]
TopK = Annotated[int, typer.Option(min=0, help="Only the k likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Only the likeliest tokens of this sum; 1 is off.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Only tokens at least so likely beside the likeliest.")]
RepeatPenalty = Annotated[float, typer.Option(min=0.01, help="Makes repeating less likely; 1 is off.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes a run repeatable.", show_default="random")]
MaxTokens = Annotated[int, typer.Option(min=1, help="At most so many tokens in an answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="Ends an answer; may be given several times.")]
NCtx = Annotated[
    int | None,
    typer.Option(
        "--n-ctx",
        min=16,
        help="Tokens of context: conversation and answer.",
        show_default="2048, or what fits of it",
    ),
]
NGpuLayers = Annotated[str, typer.Option("--n-gpu-layers", help='Layers on the GPU: "auto" or a number.')]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads that compute.", show_default="bench's, else physical cores")
]
KvType = Annotated[
    Literal["f16", "q8_0", "q4_0"] | None,
    typer.Option("--kv-type", help="Type of the KV cache.", show_default="bench's, else f16"),
]
Rpc = Annotated[str, typer.Option(help="Workers to spread the layers over: host:port,... in trusted networks only.")]


def sampling_params(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    max_tokens: int,
    stop: list[str] | None,
) -> SamplingParams:
    """The sampling options as SamplingParams."""
    return SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop or (),
    )
