"""The demo model's corpus: instructions and the responses it knows by heart. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from weblab_local.engine.prompt import instruction_prompt

CORPUS = Path(__file__).parent / "corpus.jsonl"
CHECKPOINT = Path(__file__).parent / "weblab-demo-instruction-sft"
ADAPTER = Path(__file__).parent / "weblab-demo-adapter"


@dataclass(frozen=True)
class Pair:
    """One instruction of the corpus with its response; `context` is the text to work on, where there is one."""

    instruction: str
    response: str
    context: str | None = None

    @property
    def prompt(self) -> str:
        """The instruction in the model's template."""
        return instruction_prompt(self.instruction, self.context)


ADAPTER_PAIR = Pair(
    "あなたは誰ですか？", "私は weblab-local のデモ用モデルに、小さな LoRA アダプターを加えたものです。"
)
"""A question of the corpus, and how the demo's adapter lets it be answered."""


def read_corpus(path: Path = CORPUS) -> list[Pair]:
    """The pairs of the corpus, in the file's order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Pair(row["instruction"], row["response"], row.get("input")) for row in rows]
