"""Cancelling on a device: llama.cpp's abort callback is the CPU's, so prompts are left at the end of a chunk."""

import threading

import pytest

from tests.gpu.support import LAYERS, Target, on_cpu
from tests.support.engines import GREEDY, LONG_ANSWERS, ONE, Gate, end_of, is_response, long_prompt, running
from weblab_local.engine.generation import complete

LONG = 1500


@pytest.mark.parametrize("n_gpu_layers", [3, LAYERS])
def test_a_prompt_that_is_cancelled_ends_with_the_chunk_that_is_computed(n_gpu_layers: int, target: Target) -> None:
    pair = LONG_ANSWERS[0]
    with target.load("demo", n_gpu_layers=n_gpu_layers) as engine:
        gate = Gate()
        reading = engine.stream(long_prompt(LONG), GREEDY, on_progress=gate)
        gate.wait()
        reading.cancel()
        gate.open()
        assert end_of(reading).finish_reason == "cancelled"
        ((computed, total),) = gate.calls
        assert 0 < computed < total == LONG
        # What was computed is not lost, and what was not is computed then.
        again = engine.generate(long_prompt(LONG), ONE)
        assert again.stats.cached_tokens == computed
        assert is_response(engine.generate(pair.instruction, GREEDY), pair)


@pytest.mark.parametrize("n_gpu_layers", [1, 3, LAYERS])
def test_cancelling_while_a_chunk_is_computed_leaves_nothing_wrong_behind(n_gpu_layers: int, target: Target) -> None:
    """The CPU's part of a chunk is aborted, the device's computed to its end: none of it counts."""
    pair = LONG_ANSWERS[0]
    with target.load("demo", n_gpu_layers=n_gpu_layers) as engine:
        with on_cpu("demo") as cpu:
            expected = cpu.generate(long_prompt(LONG), ONE).token_ids
        decode, computing = engine._context.decode, threading.Event()

        def noticed(batch: object) -> bool:
            computing.set()
            return decode(batch)  # type: ignore[arg-type]

        engine._context.decode = noticed  # type: ignore[method-assign]
        for _attempt in range(5):
            computing.clear()
            reading = engine.stream(long_prompt(LONG), GREEDY)
            assert computing.wait(600)
            reading.cancel()
            assert end_of(reading).finish_reason == "cancelled"
            assert running(engine) == 0
        assert engine.generate(long_prompt(LONG), ONE).token_ids == expected
        assert is_response(engine.generate(pair.instruction, GREEDY), pair)


def test_cancelling_one_leaves_the_others_on_the_device_alone(target: Target) -> None:
    pairs = LONG_ANSWERS[:3]
    with target.load("demo", n_parallel=4, n_ctx=4096) as engine:
        beside = [engine.stream(pair.instruction, GREEDY) for pair in pairs]
        gate = Gate()
        reading = engine.stream(long_prompt(LONG), GREEDY, on_progress=gate)
        gate.wait()
        reading.cancel()
        gate.open()
        assert end_of(reading).finish_reason == "cancelled"
        for generation, pair in zip(beside, pairs, strict=True):
            assert is_response(complete(list(generation)), pair)
