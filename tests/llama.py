"""llama.cpp itself, for the tests to compare with: its quantizer, its logits, its greedy decoding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gguf import GGUFReader, LlamaFileType
from llama_cpp import Llama, llama_cpp
from numpy.typing import NDArray

from weblab_local import llama_log


def quantize(source: Path, target: Path, file_type: LlamaFileType) -> Path:
    """`llama_model_quantize`, which is what the tool llama-quantize calls."""
    llama_log.route()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


def tensor_bytes(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor of a GGUF, by gguf's own reader."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


@contextmanager
def loaded(path: Path, logits_all: bool = False) -> Iterator[Llama]:
    """The model in llama.cpp, on one thread so that nothing depends on the machine's load."""
    llama_log.route()
    model = Llama(str(path), n_ctx=2048, n_threads=1, n_threads_batch=2, logits_all=logits_all, verbose=False)
    try:
        yield model
    finally:
        model.close()


def logits(path: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """llama.cpp's logits after each of `ids`: (len(ids), n_vocab)."""
    with loaded(path, logits_all=True) as model:
        model.eval(list(ids))
        return np.array(model.scores[: len(ids)], dtype=np.float32)


def greedy(model: Llama, ids: Sequence[int], max_tokens: int) -> list[int]:
    """The most likely continuation, up to and with the end-of-text token."""
    answer: list[int] = []
    for token in model.generate(list(ids), temp=0.0, repeat_penalty=1.0, reset=True):
        answer.append(int(token))
        if token == model.token_eos() or len(answer) == max_tokens:
            break
    return answer
