"""transformers and tokenizers on the demo checkpoint, for the tests to compare with: fp32 arithmetic, fp16 weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import GPTNeoXForCausalLM

from convert.demo.corpus import CHECKPOINT, Pair, read_corpus

END = 0
PREAMBLE = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread: for so small a model more are slower, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def model() -> GPTNeoXForCausalLM:
    """The demo in transformers."""
    return GPTNeoXForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


@cache
def tokenizer() -> Tokenizer:
    """The demo's tokenizer in tokenizers."""
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def encode(text: str) -> list[int]:
    """The ids of `text`, none of them special."""
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def decode(ids: Sequence[int]) -> str:
    """The text of `ids`, nothing for special tokens, and an unfinished character as U+FFFD."""
    return str(tokenizer().decode(list(ids), skip_special_tokens=True))


def conversation(turns: Sequence[tuple[str, Sequence[int]]], instruction: str, system: str = "") -> list[int]:
    """The ids of a conversation: (instruction, ids of the answer) of the turns, and a new instruction."""
    ids: list[int] = []
    for position, (asked, answer) in enumerate([*turns, (instruction, ())]):
        beginning = "" if position else PREAMBLE
        if system and not position:
            asked = f"{system}\n\n{asked}"
        ids += [*encode(f"{beginning}\n\n### 指示:\n{asked}\n\n### 応答:"), *answer]
    return ids


def logits(ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits after each of `ids`: (len(ids), vocabulary)."""
    with torch.inference_mode(), _one_thread():
        return np.asarray(model()(input_ids=torch.tensor([list(ids)])).logits[0].numpy(), dtype=np.float32)


def is_greedy(prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether greedy decoding goes on after `prompt` with `answer`; one forward pass that looks at every step."""
    most_likely = logits([*prompt, *answer[:-1]])[len(prompt) - 1 :].argmax(axis=-1)
    return bool(most_likely.tolist() == list(answer))


def greedy(prompts: Sequence[Sequence[int]], max_tokens: int, repetition_penalty: float = 1.0) -> list[list[int]]:
    """`generate` without sampling for each of `prompts`, up to and with the end-of-text token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[1] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode(), _one_thread():
        output: Any = model().generate(  # type: ignore[misc]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=1,
            repetition_penalty=repetition_penalty,
        )
    answers = [row[longest:] for row in output.tolist()]
    return [answer[: answer.index(END) + 1] if END in answer else answer for answer in answers]


@cache
def answers() -> Mapping[str, Sequence[int]]:
    """What transformers answers to each prompt of the corpus, token for token, up to and with the end of text."""
    pairs = sorted(read_corpus(), key=lambda pair: len(pair.prompt) + 3 * len(pair.response))
    found: dict[str, Sequence[int]] = {}
    for start in range(0, len(pairs), 22):
        prompts = [pair.prompt for pair in pairs[start : start + 22]]
        found |= zip(prompts, greedy([encode(prompt) for prompt in prompts], 256), strict=True)
    return found


def answer_ids(pair: Pair) -> list[int]:
    """The answer to one of the corpus, without the end of text."""
    ids = list(answers()[pair.prompt])
    return ids[:-1] if ids[-1] == END else ids
