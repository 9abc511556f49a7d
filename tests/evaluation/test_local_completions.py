"""lm-eval's `local-completions` against the server, beside lm-eval's own `hf` model on the same checkpoint."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from convert.demo.corpus import read_corpus
from tests.evaluation.harness import hf_model
from tests.server.support import Running, serving
from weblab_local.engine.engine import Engine

PAIRS = read_corpus()


@pytest.fixture(scope="module")
def server(demo_f16: Path) -> Iterator[Running]:
    with Engine(demo_f16, n_parallel=4, n_ctx=4096, n_threads=1) as engine, serving(engine) as running:
        yield running


@pytest.fixture(scope="module")
def arguments() -> list[tuple[str, str]]:
    """Contexts with right and wrong continuations; after a right one the model ends its answer."""
    rng = random.Random(3)
    chosen = rng.sample(PAIRS, 12)
    return [(p.prompt, p.response) for p in chosen] + [(p.prompt, rng.choice(PAIRS).response) for p in chosen]


@pytest.fixture(scope="module")
def expected(arguments: list[tuple[str, str]], demo_checkpoint: Path) -> list[tuple[float, bool]]:
    """What the `hf` model says."""
    found: list[tuple[float, bool]] = hf_model(demo_checkpoint, separate=False).loglikelihood(instances(arguments))
    return found


def instances(arguments: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, of, idx) for idx, of in enumerate(arguments)]


def assert_agree(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=0.1, rel=0.005)


def test_what_lm_eval_sends_and_reads(
    server: Running,
    arguments: list[tuple[str, str]],
    expected: list[tuple[float, bool]],
    demo_checkpoint: Path,
) -> None:
    """Its own payload and its own reading of the answer, without what it needs to send it."""
    lm: Any = LocalCompletionsAPI.__new__(LocalCompletionsAPI)
    lm.model = "default"
    hf: Any = hf_model(demo_checkpoint, separate=False)
    ours = []
    with server.http as http:
        for start in range(0, len(arguments), 8):
            pairs = [hf._encode_pair(*of) for of in arguments[start : start + 8]]
            payload = lm._create_payload([[*context, *rest] for context, rest in pairs])
            answer = http.post("/v1/completions", json=payload)
            assert answer.status_code == 200
            ours += LocalCompletionsAPI.parse_logprobs(answer.json(), ctxlens=[len(context) for context, _ in pairs])
    assert_agree(ours, expected)


def test_the_whole_of_it(
    server: Running,
    arguments: list[tuple[str, str]],
    expected: list[tuple[float, bool]],
    demo_checkpoint: Path,
) -> None:
    lm = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="default",
        tokenizer=str(demo_checkpoint),
        tokenizer_backend="huggingface",
        batch_size=4,
    )
    assert_agree(lm.loglikelihood(instances(arguments)), expected)
    until = {"until": ["\n"], "max_gen_toks": 200}
    (text,) = lm.generate_until([Instance("generate_until", {}, (PAIRS[0].prompt, until), 0)])
    assert text.strip() == PAIRS[0].response.split("\n")[0].strip()
