"""The commands with a device, and with a build for one that finds none."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.gpu.support import KL_LIMIT, LAYERS, Target
from tests.support.conversions import ROOT
from tests.support.engines import SHORT_ANSWERS

HIDDEN = {
    "cuda": {"CUDA_VISIBLE_DEVICES": ""},
    "metal": {"GGML_METAL_DEVICES": "0"},
    "vulkan": {"GGML_VK_VISIBLE_DEVICES": ""},
}
"""What hides all devices from a backend."""

PAIR = SHORT_ANSWERS[60]


def weblab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weblab_local", "--lang", "en", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_self_test_finds_the_device_right(target: Target) -> None:
    done = weblab("doctor", "--self-test", "--json", "--rpc", ",".join(target.workers))
    assert done.returncode == 0, done.stdout + done.stderr
    tested: dict[str, Any] = json.loads(done.stdout)
    cpu, *others = tested["devices"]
    assert (cpu["kind"], cpu["ok"]) == ("cpu", True)
    assert others
    for device in others:
        assert device["ok"]
        assert device["n_layers"] == LAYERS
        assert device["right_answers"] == device["n_answers"]
        assert device["mean_kl"] < KL_LIMIT
        assert device["planned_memory"] == pytest.approx(device["memory"], rel=0.03)
        assert min(device["prompt_speed"], device["generation_speed"]) > 0


def test_doctor_names_the_device(target: Target) -> None:
    if target.workers:
        pytest.skip("doctor asks no workers")
    done = weblab("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Device {target.device().name}" in done.stdout


def test_a_build_for_a_device_that_is_not_there_answers_on_the_cpu(target: Target) -> None:
    if target.backend not in HIDDEN:
        pytest.skip("without --rpc there is no worker to hide")
    hidden = HIDDEN[target.backend]
    done = weblab("generate", "--model", "demo", "--temperature", "0", PAIR.instruction, **hidden)
    assert (done.returncode, done.stdout.strip()) == (0, PAIR.response), done.stderr
    report = json.loads(weblab("doctor", "--json", **hidden).stdout)
    assert [device["kind"] for device in report["devices"] if device["kind"] != "accel"] == ["cpu"]
    assert "gpu-not-found" in [one["code"] for one in report["advice"]]
    tested = weblab("doctor", "--self-test", **hidden)
    assert tested.returncode == 0, tested.stdout
    assert "no device but the CPU" in tested.stdout
