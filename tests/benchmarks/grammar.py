"""What a grammar costs for each token: this engine's sampler beside llama.cpp's order, in which the grammar is first.

    python -m tests.benchmarks.grammar [--model FILE]

The schema has 1,400 values with a common beginning. Both choose greedily among the same logits, in which the next token
of one of the values is the likeliest, as a model's is that has been told what to write; they have to choose the same.
Prints the medians in milliseconds and the size of the vocabulary.
"""

import argparse
import json
import statistics
import time

import numpy as np

from weblab_local.engine.sampler import Sampler
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.token_budget import TokenBudget
from weblab_local.grammar.nodes import read_grammar
from weblab_local.llama.context import Model
from weblab_local.llama.sampler_chain import SamplerChain
from weblab_local.llama.segmentation import Segmentation
from weblab_local.models.store import find_model

VALUES = [f"これらの値はどれも同じように始まり、番号だけが違います: {n}" for n in range(1400)]
SCHEMA = {"enum": VALUES}


def main() -> None:
    """Measure and print a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    model = Model(find_model(arguments.model), 0)
    params = SamplingParams(temperature=0, json_schema=SCHEMA)
    budget = TokenBudget(read_grammar(str(params.gbnf())), Segmentation(model.tokenizer.pieces), model.eos)
    ours = Sampler(params, model.vocab, (), 2048, budget=budget)
    theirs = SamplerChain(model.vocab)
    theirs.add_grammar(str(params.gbnf()))
    theirs.add_greedy()
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for token in model.tokenizer.encode(json.dumps(VALUES[700], ensure_ascii=False)):
        logits = rng.standard_normal(model.n_vocab).astype(np.float32)
        logits[token] += 10
        started = time.perf_counter()
        array = ours._applied(logits, 1000)
        chosen = int(array.data[array.selected].id)
        between = time.perf_counter()
        array = theirs.apply(logits)
        expected = int(array.data[array.selected].id)
        ended = time.perf_counter()
        assert chosen == expected
        seconds["ours"].append(between - started)
        seconds["theirs"].append(ended - between)
        for chain in (*ours._chains, theirs):
            chain.accept(chosen)
        budget.take(chosen)
    medians = [1000 * statistics.median(seconds[name]) for name in ("ours", "theirs")]
    print("| vocabulary | this engine | grammar first | ratio |\n| --- | --- | --- | --- |")
    print(f"| {model.n_vocab} | {medians[0]:.2f} ms | {medians[1]:.2f} ms | {medians[1] / medians[0]:.1f} |")


if __name__ == "__main__":
    main()
