"""Where llama.cpp really put a model, as its log says while loading."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LINE = re.compile(r":\s+(\S{1,256})\s+(model|KV|compute|output) buffer size\s*=\s*([0-9.]+) MiB")
"""llama-model.cpp, llama-kv-cache.cpp, llama-context.cpp; sizes are rounded to 0.01 MiB.

A line may be as long as the longest text in a file's metadata."""


@dataclass(frozen=True)
class Placement:
    """Bytes of weights, KV cache and compute buffers (the logits among them), by the names of llama.cpp's buffers.

    CPU_Mapped is the range of the file that is mapped; weights that are rearranged for the processor lie in it and,
    as what is really used, in CPU_REPACK.
    """

    weights: Mapping[str, int]
    kv: Mapping[str, int]
    compute: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of all buffers."""
        return sum(sum(buffers.values()) for buffers in (self.weights, self.kv, self.compute))

    def weights_on(self, buffer: str) -> int:
        """Bytes of weights on the device whose buffers are called `buffer`, mapped or copied."""
        return sum(size for name, size in self.weights.items() if name == buffer or name == f"{buffer}_Mapped")


def read_placement(lines: Iterable[str]) -> Placement:
    """What the lines of the log say about buffers."""
    found: dict[str, Counter[str]] = {"model": Counter(), "KV": Counter(), "compute": Counter()}
    for line in lines:
        if match := _LINE.search(line):
            buffer, kind, size = match.groups()
            found["compute" if kind == "output" else kind][buffer] += round(float(size) * 2**20)
    return Placement(weights=dict(found["model"]), kv=dict(found["KV"]), compute=dict(found["compute"]))
