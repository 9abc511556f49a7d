"""Answers with drafts beside the same without: tokens per step, and time.

    python -m tests.benchmarks.drafts MODEL JSQUAD [--items 4] [--tokens 160] [--cpu-time]
    python -m tests.benchmarks.drafts MODEL JSQUAD --differing [--items 40] [--tokens 100]

Replayed decoding: an answer that is given is forced token by token, so that a model of random weights takes the time of
a real one for text that somebody wrote. The sampler still chooses, and its choice is dropped. Two engines hold the same
file, one with drafts and one without, and answer each prompt by turns. JSQUAD is JSQuAD's validation file. With
`--cpu-time` one thread computes and its processor time is counted, which other programs hardly change.

`--differing` counts real answers that are not the same with drafts as without, to questions of the project's corpus.
Drafts are then as long as guesses go, whatever they cost, and no answer ends before its length.
"""

import argparse
import heapq
import inspect
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from convert.demo.corpus import read_corpus
from weblab_local.engine import choosing, request, scheduler
from weblab_local.engine.draft_costs import BatchCosts
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Stats
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.engine.sampler import Sampler
from weblab_local.engine.sampling import SamplingParams

SAMPLINGS = {
    "temperature 0": SamplingParams(temperature=0),
    "the defaults, a seed": SamplingParams(),
    "temperature 1, a seed": SamplingParams(temperature=1, top_k=0, top_p=1),
}
LINES = 8
"""Of a list that is continued: so many are given, and as many follow."""

_answers: dict[tuple[int, ...], Sequence[int]] = {}
"""By prompt, the answer that is forced."""


class Free(BatchCosts):
    """What is guessed is computed, whatever it costs."""

    def best_length(self, _n_generating: int, odds: Sequence[float]) -> int:
        return len(odds)


class Replayed(Sampler):
    """Chooses as a sampler does, and gives the next token of the prompt's answer instead."""

    def __init__(self, params: SamplingParams, vocab: Any, prompt: Sequence[int], *rest: Any) -> None:
        super().__init__(params, vocab, prompt, *rest)
        self._left = iter(_answers[tuple(prompt)])

    def sample(self, context: Any, index: int, n_left: int) -> int:
        super().sample(context, index, n_left)
        return next(self._left)


@dataclass(frozen=True)
class Item:
    """An instruction, perhaps with a text to work on, and its answer."""

    instruction: str
    context: str | None
    answer: str


def tasks(jsquad: Path, n_items: int) -> Iterator[tuple[str, list[Item]]]:
    """What is measured: first what quotes its prompt, then free text."""
    articles = json.loads(jsquad.read_text(encoding="utf-8"))["data"]
    titled = [(article["title"], one["context"]) for article in articles for one in article["paragraphs"]]
    texts = sorted({context.rpartition("[SEP]")[2].strip() for _, context in titled}, key=len)[-3 * n_items :]
    copied, misspelt, free = (texts[n::3] for n in range(3))
    lines = [f"- 記事「{title}」の段落: {len(text)} 文字、句点 {text.count('。')} 個" for title, text in titled]
    code = inspect.getsource(heapq.merge)
    names = ("h_append", "_heapify", "direction", "iterables", "value", "order", "key")[:n_items]
    pairs = sorted(read_corpus(), key=lambda pair: len(pair.response))[-2 * n_items :]
    yield "copy half of a text", [Item("次の文章の後半を抜き出してください。", t, t[len(t) // 2 :]) for t in copied]
    yield "correct a typo", [Item("誤字を直してください。", t.replace("の", "のの", 1), t) for t in misspelt]
    yield "continue a list", [_continued(lines[n : n + 2 * LINES]) for n in range(0, 9 * n_items, 9)]
    yield "rename in code", [Item(f"Rename {name} to renamed.", code, code.replace(name, "renamed")) for name in names]
    yield "answer (corpus)", [Item(pair.instruction, pair.context, pair.response) for pair in pairs]
    yield "write (JSQuAD)", [Item("説明してください。", None, text) for text in free]


def _continued(lines: Sequence[str]) -> Item:
    return Item("次の一覧を続けてください。", "\n".join(lines[:LINES]), "\n".join(lines[LINES:]))


def answered(engine: Engine, item: Item, n_tokens: int) -> Stats:
    """Let the engine answer; what it took."""
    prompt = engine.tokenize(instruction_prompt(item.instruction, item.context))
    answer = engine.tokenize(item.answer)[:n_tokens]
    _answers[tuple(prompt)] = answer
    stats = engine.generate(prompt, SamplingParams(max_tokens=len(answer)), raw=True).stats
    assert stats.completion_tokens == len(answer)
    return stats


def compare(engines: Sequence[Engine], items: Sequence[Item], n_tokens: int) -> str:
    """The rest of a task's row: both engines answer each of the `items`, by turns."""
    plain: list[Stats] = []
    drafting: list[Stats] = []
    for number, item in enumerate(items):
        for engine in engines if number % 2 else reversed(engines):
            (plain if engine is engines[0] else drafting).append(answered(engine, item, n_tokens))
    tokens = sum(stats.completion_tokens for stats in drafting)
    drafted, accepted = (
        sum(getattr(stats, name) for stats in drafting) for name in ("drafted_tokens", "accepted_tokens")
    )
    ratios = [one.generation_seconds / other.generation_seconds for one, other in zip(plain, drafting, strict=True)]
    together = sum(stats.generation_seconds for stats in plain) / sum(stats.generation_seconds for stats in drafting)
    right = f"{accepted / drafted:.0%}" if drafted else "-"
    return (
        f"{tokens} | {tokens / (tokens - accepted):.2f} | {drafted} | {right} "
        f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} | {together:.2f}"
    )


def count_differing(model: Path, n_items: int, n_tokens: int) -> None:
    """Print how many answers are not the same, and how many are not when they are given twice without drafts."""
    pairs = [pair for pair in read_corpus() if pair.context is None][:n_items]
    print("| sampling | answers | differ with drafts | differ when given again without | drafted tokens kept |")
    print("| --- | --- | --- | --- | --- |")
    for name, sampling in SAMPLINGS.items():
        with Engine(model, drafts=False) as plain, Engine(model, drafts=True) as drafting:
            drafting._scheduler._roster.drafts.costs = Free()
            end = int(plain.metadata["tokenizer.ggml.eos_token_id"])
            differ = again = accepted = 0
            for seed, pair in enumerate(pairs):
                params = replace(sampling, seed=seed, max_tokens=n_tokens, logit_bias={end: -math.inf})
                first, second, drafted = (one.generate(pair.instruction, params) for one in (plain, plain, drafting))
                differ += drafted.token_ids != first.token_ids
                again += second.token_ids != first.token_ids
                accepted += drafted.stats.accepted_tokens
        print(f"| {name} | {len(pairs)} | {differ} | {again} | {accepted} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF")
    parser.add_argument("jsquad", type=Path, help="JSQuAD's valid-v1.3.json")
    parser.add_argument("--items", type=int, default=4, help="prompts of each task (default 4)")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most (default 160)")
    parser.add_argument("--cpu-time", action="store_true", help="count one thread's processor time")
    parser.add_argument("--differing", action="store_true", help="count answers that differ")
    arguments = parser.parse_args()
    if arguments.differing:
        count_differing(arguments.model, arguments.items, arguments.tokens)
        return
    if arguments.cpu_time:
        for module in (scheduler, request):
            vars(module)["time"] = SimpleNamespace(perf_counter=time.process_time)
    n_threads = 1 if arguments.cpu_time else None
    vars(choosing)["Sampler"] = Replayed
    with (
        Engine(arguments.model, n_threads=n_threads, drafts=False) as plain,
        Engine(arguments.model, n_threads=n_threads, drafts=True) as drafting,
    ):
        print("| task | tokens | per step | guessed | of these right | speed, median | lowest | together |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, items in tasks(arguments.jsquad, arguments.items):
            print(f"| {name} | {compare((plain, drafting), items, arguments.tokens)} |", flush=True)
        costs = drafting._scheduler._roster.drafts.costs
        measured = ", ".join(f"{n}: {costs.seconds(n) / costs.seconds(1):.2f}" for n in (1, 2, 3, 4, 6, 8, 12, 16))
        print(f"\nWhat batches of so many tokens cost at the end, in batches of one: {measured}")


if __name__ == "__main__":
    main()
