"""The memory plan beside what llama.cpp reports after loading."""

from dataclasses import replace

import pytest

from weblab_local.machine.placement import Placement
from weblab_local.machine.plan import Plan

ROUNDING = 0.005 * 2**20
"""llama.cpp's log rounds to 0.01 MiB."""


def assert_as_planned(plan: Plan, reported: Placement, tolerance: float = 0.03) -> None:
    """The buffers are those that llama.cpp reports, weights and KV cache to its rounding, and all together."""
    planned = plan.placement
    assert (planned.weights.keys(), planned.kv.keys(), planned.compute.keys()) == (
        reported.weights.keys(),
        reported.kv.keys(),
        reported.compute.keys(),
    )
    for expected, found in ((planned.weights, reported.weights), (planned.kv, reported.kv)):
        for buffer, size in found.items():
            assert expected[buffer] == pytest.approx(size, rel=1e-4, abs=2 * ROUNDING), buffer
    assert planned.total == pytest.approx(reported.total, rel=tolerance)


def assert_planned_for_a_helper(plan: Plan, reported: Placement, tolerance: float = 0.1) -> None:
    """Where a GPU computes for layers that stayed with the CPU: as above, but its buffer is planned for the worst."""
    planned = plan.placement
    assert planned.compute.keys() == reported.compute.keys()
    largest = replace(planned, compute=reported.compute)
    assert_as_planned(replace(plan, placement=largest), reported)
    for buffer, size in reported.compute.items():
        assert size <= (1 + tolerance) * planned.compute[buffer], buffer
