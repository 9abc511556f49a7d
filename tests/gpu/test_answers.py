"""A device computes what the CPU computes: layers on it, KV caches, flash attention, conversations, four at once."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.conftest import QUANTS
from tests.gpu.support import GREEDY, KL_LIMIT, LAYERS, Target, answers, mean_kl, on_cpu, tokens, unknown_text
from tests.support.engines import PAIRS
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import complete

KNOWN = sorted(PAIRS, key=lambda pair: len(pair.response))[60:240:45]
"""Four of the corpus that the demo knows by heart, short and long."""

INSTRUCTIONS = [pair.instruction for pair in KNOWN]


class Computed(NamedTuple):
    """What a model gives: the tokens of its answers, and distributions on a text that it does not know."""

    tokens: list[list[int]]
    distributions: NDArray[np.float64]


def computed(engine: Engine) -> Computed:
    return Computed(tokens(answers(engine, INSTRUCTIONS)), unknown_text(engine))


@pytest.fixture(scope="module")
def by_the_cpu(demos: Mapping[str, Path]) -> Callable[..., Computed]:
    """What the CPU computes, once for each quantization and KV type."""

    @cache
    def compute(quant: str, **options: Any) -> Computed:
        with on_cpu(demos[quant], **options) as engine:
            return computed(engine)

    return compute


@pytest.mark.parametrize("n_gpu_layers", range(LAYERS + 1))
@pytest.mark.parametrize("quant", QUANTS)
def test_layers_on_the_device_give_the_cpus_answers(
    quant: str, n_gpu_layers: int, target: Target, demos: Mapping[str, Path], by_the_cpu: Callable[..., Computed]
) -> None:
    expected = by_the_cpu(quant)
    with target.load(demos[quant], n_gpu_layers=n_gpu_layers) as engine:
        assert engine.plan is not None
        assert engine.plan.n_gpu_layers == n_gpu_layers
        assert engine.warnings == []
        found = computed(engine)
    assert found.tokens == expected.tokens
    assert mean_kl(expected.distributions, found.distributions) < KL_LIMIT


def test_the_cpu_knows_the_answers_by_heart(demos: Mapping[str, Path]) -> None:
    with on_cpu(demos["F16"]) as engine:
        assert [answer.text for answer in answers(engine, INSTRUCTIONS)] == [pair.response for pair in KNOWN]


@pytest.mark.parametrize(
    "options",
    [{"kv_type": "q8_0"}, {"kv_type": "q4_0"}, {"flash_attention": True}, {"flash_attention": False}],
    ids=str,
)
@pytest.mark.parametrize("n_gpu_layers", [3, LAYERS])
def test_kv_caches_and_flash_attention_give_the_cpus_answers(
    options: dict[str, Any],
    n_gpu_layers: int,
    target: Target,
    demos: Mapping[str, Path],
    by_the_cpu: Callable[..., Computed],
) -> None:
    expected = by_the_cpu("F16", **options)
    with target.load(demos["F16"], n_gpu_layers=n_gpu_layers, **options) as engine:
        found = computed(engine)
    assert found.tokens == expected.tokens
    assert mean_kl(expected.distributions, found.distributions) < KL_LIMIT


@pytest.mark.parametrize("n_gpu_layers", [3, LAYERS])
def test_a_conversation_goes_on_from_what_the_device_remembers(
    n_gpu_layers: int, target: Target, demos: Mapping[str, Path]
) -> None:
    def held(engine: Engine) -> list[tuple[list[int], int]]:
        chat = engine.chat(None, GREEDY)
        replies = [chat.send(instruction) for instruction in INSTRUCTIONS]
        return [(list(reply.token_ids), reply.stats.cached_tokens) for reply in replies]

    with on_cpu(demos["F16"]) as engine:
        expected = held(engine)
    with target.load(demos["F16"], n_gpu_layers=n_gpu_layers) as engine:
        found = held(engine)
    assert found == expected
    assert all(cached for _tokens, cached in found[1:])


@pytest.mark.parametrize("n_gpu_layers", [3, LAYERS])
def test_four_at_once_get_their_own_answers(n_gpu_layers: int, target: Target, demos: Mapping[str, Path]) -> None:
    with target.load(demos["F16"], n_gpu_layers=n_gpu_layers, n_parallel=4) as engine:
        running = [engine.stream(pair.instruction, GREEDY) for pair in KNOWN]
        done = [complete(list(generation)) for generation in running]
    assert [answer.text for answer in done] == [pair.response for pair in KNOWN]


def test_what_was_dropped_from_the_cache_is_not_remembered(target: Target, demos: Mapping[str, Path]) -> None:
    """Prompts that begin alike, one after the other in one sequence, answer as each does alone."""
    with target.load(demos["F16"]) as engine:
        prompts = [engine.tokenize(pair.prompt) for pair in KNOWN]
        mixed = [engine.generate(prompt, GREEDY, raw=True) for prompt in [*prompts, *reversed(prompts)]]
    assert [answer.text for answer in mixed[: len(KNOWN)]] == [pair.response for pair in KNOWN]
    assert tokens(mixed[: len(KNOWN)]) == tokens(mixed[len(KNOWN) :][::-1])
    assert any(answer.stats.cached_tokens for answer in mixed)
