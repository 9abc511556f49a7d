"""What a conversion is said to take, before it begins."""

import sys
from dataclasses import astuple
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import convert.run
from convert.calibration import compensation
from convert.calibration.duration import Durations, Speeds, described, estimate, measure
from convert.calibration.two_passes import TwoPasses
from convert.quantization.mixtures import ALL
from convert.source.checkpoint import open_checkpoint
from convert.source.source import local_source, model_card
from convert.writing.plan import Plan, make_plan
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted


def planned(folder: Path, *mixtures: str) -> Plan:
    checkpoint = open_checkpoint(folder)
    card = model_card(local_source(folder), "auto", [])
    return make_plan(checkpoint, card, [ALL[name] for name in mixtures], folder)


@pytest.fixture(scope="module")
def demo_plan(demo_checkpoint: Path) -> Plan:
    return planned(demo_checkpoint, "Q4_K_M")


W4_TOO = "W4 loses less of the model and is no larger, but takes about 1 h 05 min: --quant W4 (make convert QUANT=W4)."
QUICK = "The quick way is --quant Q4_K_M (make convert QUANT=Q4_K_M), about 2 min; it loses more of the model."


@pytest.mark.parametrize(
    ("mixtures", "expected"),
    [
        (["Q4_K_M"], f"Q4_K_M: about 2 min on this machine. {W4_TOO}"),
        (["W4"], f"W4: about 1 h 05 min on this machine. {QUICK}"),
        (["W4", "W3"], f"W4 and W3: about 2 h 08 min on this machine. {QUICK}"),
        (["Q8_0"], "Q8_0: about 2 min on this machine."),
    ],
)
def test_both_ways_are_named_with_their_times(demo_checkpoint: Path, mixtures: list[str], expected: str) -> None:
    assert described(planned(demo_checkpoint, *mixtures), Durations(90, 3800)) == expected


@pytest.mark.parametrize("n_tokens", [8000, 700], ids=["all lack is made up for", "that of some matrices"])
def test_products_are_as_many_as_torch_counts(n_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensation, "CALIBRATION_TOKENS", n_tokens)
    folder = random_checkpoint(tmp_path / "checkpoint", hidden=512, heads=4, intermediate=1024)
    counter = FlopCounterMode(display=False)
    original = TwoPasses.run

    def run_counted(passes: TwoPasses, *arguments: Any) -> None:
        with counter:
            original(passes, *arguments)

    monkeypatch.setattr(TwoPasses, "run", run_counted)
    converted(folder, tmp_path / "output", "W4")
    plan = planned(folder, "W4")
    only_products = estimate(plan, Speeds(products=1, float32=inf, processor=inf, weights=inf))
    assert only_products.rounding == pytest.approx(counter.get_total_flops(), rel=0.1)


@given(st.builds(Speeds, *[st.floats(1e6, 1e13)] * 4), st.floats(1.1, 10))
def test_a_faster_machine_takes_less_by_as_much(demo_plan: Plan, speeds: Speeds, times: float) -> None:
    faster = Speeds(*(times * speed for speed in astuple(speeds)))
    slow, fast = estimate(demo_plan, speeds), estimate(demo_plan, faster)
    assert fast.converting == pytest.approx(slow.converting / times)
    assert fast.rounding == pytest.approx(slow.rounding / times)


def test_a_trial_finds_speeds() -> None:
    found = measure(2, torch.device("cpu"))
    assert all(speed > 1e6 for speed in astuple(found))


def test_a_large_model_s_times_are_among_the_first_lines(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert.run, "FORECAST_WEIGHTS", 0)
    converted(demo_checkpoint, tmp_path, "Q4_K_M")
    said = capsys.readouterr().err
    assert said.index("--quant W4 (make convert QUANT=W4)") < said.index("converting:")


def test_where_w4_cannot_be_made_nothing_is_said_of_it(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert.run, "FORECAST_WEIGHTS", 0)
    monkeypatch.setitem(sys.modules, "convert.calibration.duration", None)
    converted(demo_checkpoint, tmp_path, "Q4_K_M")
    assert "W4" not in capsys.readouterr().err
