"""lm-eval's own `hf` model on a checkpoint, to compare with."""

from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM


class SeparateHFLM(HFLM):  # type: ignore[misc]
    """Context and continuation are tokenized each on its own, as in the card's benchmark."""

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.tok_encode(context), self.tok_encode(continuation)


def hf_model(checkpoint: Path, *, separate: bool) -> HFLM:
    """transformers in float32 on one thread of the CPU."""
    torch.set_num_threads(1)
    kind = SeparateHFLM if separate else HFLM
    return kind(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=4)
