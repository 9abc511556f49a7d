"""`weblab-local bench`: a row per combination, and a setting that is used afterwards."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from convert.demo.corpus import ADAPTER, CHECKPOINT
from tests.support.adapters import as_gguf
from weblab_local.cli.bench import Grid, report
from weblab_local.diagnosis.bench import (
    Row,
    Speed,
    Workload,
    bytes_per_token,
    combinations,
    fastest,
    measure,
    prompt_ids,
    setting_to_save,
    sweep,
    thread_counts,
)
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.home import read_settings, write_settings
from weblab_local.llama.context import Context
from weblab_local.machine.bandwidth import memory_bandwidth
from weblab_local.machine.devices import physical_cores
from weblab_local.machine.tuning import Choice, Setting, choose, machine, save_setting, saved_setting
from weblab_local.models.loading import load
from weblab_local.models.store import demo_model

SMALL = Workload(n_prompt=8, n_generate=4, repetitions=2)
TINY = ("--model", "demo", "--n-prompt", "8", "--n-generate", "4", "--repetitions", "2")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weblab_local", "--lang", "en", "bench", *TINY, *arguments]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "LANG": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)


def row(setting: Setting, speed: float) -> Row:
    return Row(setting, Speed.of([speed * 10]), Speed.of([speed]))


def test_the_json_has_a_row_for_every_combination_that_is_possible() -> None:
    done = bench(
        "--threads", "1", "--kv-type", "f16,q8_0", "--flash-attention", "on,off", "--repack", "on,off", "--json"
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    measured = [(one["n_threads"], one["kv_type"], one["flash_attention"], one["repack"]) for one in value["rows"]]
    wanted = product([1], ["f16", "q8_0"], [True, False], [True, False])
    assert measured == [one for one in wanted if one[1] == "f16" or one[2]]
    for one in value["rows"]:
        for speeds in (one["prompt"], one["generation"]):
            assert 0 < speeds["lowest"] <= speeds["median"] <= speeds["highest"]
        assert one["bandwidth_share"] > 0
        assert one["error"] == ""
    assert value["bandwidth"] > 10**8
    assert value["best"] in [{key: one[key] for key in value["best"]} for one in value["rows"]]
    assert not value["saved"]


def test_the_table_has_a_row_for_every_combination_and_progress_is_elsewhere() -> None:
    done = bench("--threads", "1,2")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if " f16 " in line]) == 2
    assert done.stdout.count("*") == 1
    assert "GB/s" in done.stdout
    assert "threads" in done.stderr


def test_what_was_saved_is_what_load_uses() -> None:
    n_threads = 1 if physical_cores() > 1 else 2
    done = bench("--threads", str(n_threads), "--flash-attention", "off", "--repack", "off", "--json", "--save")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["saved"]
    assert saved_setting() == Setting(n_threads, "f16", flash_attention=False, repack=False)
    with load("demo", n_ctx=256) as engine:
        assert engine.n_threads == n_threads
        assert engine.plan is not None
        assert not engine.plan.flash_attention
        assert "CPU_REPACK" not in engine.plan.placement.weights
    with load("demo", n_ctx=256, n_threads=3, flash_attention=True) as engine:
        assert engine.n_threads == 3
        assert engine.plan is not None
        assert engine.plan.flash_attention


def test_what_was_saved_for_prompts_is_for_prompts_alone() -> None:
    done = bench("--workload", "prompt", "--threads", "3", "--repack", "on", "--n-batch", "64", "--json", "--save")
    assert done.returncode == 0, done.stderr
    assert saved_setting("prompt") == Setting(3, n_batch=64)
    assert saved_setting() is saved_setting("serve") is None
    with load("demo", n_ctx=256, workload="prompt") as engine:
        assert engine.n_threads == 3
        assert engine.plan is not None
        assert engine.plan.n_batch == 64
    for workload in ("chat", "serve"):
        assert choose(workload=workload) == Choice(None, "f16", None, repack=True)


def test_without_a_saved_setting_the_defaults_are_the_engines() -> None:
    with load("demo", n_ctx=256) as engine:
        assert engine.n_threads == physical_cores()
    assert choose() == Choice(None, "f16", None, repack=True)


def test_the_callers_values_go_before_the_saved_ones() -> None:
    save_setting(Setting(3, "q8_0", flash_attention=True, repack=False))
    assert choose() == Choice(3, "q8_0", None, repack=False)
    assert choose(2, "f16", repack=True) == Choice(2, "f16", True, repack=True)
    assert choose(flash_attention=False) == Choice(3, "f16", False, repack=False)
    save_setting(Setting(3, flash_attention=False))
    assert choose(kv_type="q8_0") == Choice(3, "q8_0", None, repack=True)


def test_what_was_saved_for_a_chat_is_used_for_work_without_its_own() -> None:
    save_setting(Setting(3, "q8_0", repack=False))
    assert choose(workload="serve") == Choice(3, "q8_0", None, repack=False)
    assert choose(workload="prompt") == Choice(3, "q8_0", None, repack=True, n_batch=512)
    assert choose(workload="prompt", repack_for_prompts=False) == Choice(3, "q8_0", None, repack=False, n_batch=512)
    assert choose(repack=True, n_batch=256, workload="prompt") == Choice(3, "q8_0", None, repack=True, n_batch=256)
    save_setting(Setting(2, repack=False), "serve")
    assert choose(workload="serve") == Choice(2, "f16", True, repack=False)
    with pytest.raises(WeblabError, match="serve"):
        load("demo", workload="talk")  # type: ignore[arg-type]


def test_saving_keeps_the_other_settings_and_other_machines() -> None:
    write_settings({"model": "x", "bench": {"another machine": {"n_threads": 64}}})
    save_setting(Setting(3))
    save_setting(Setting(2, n_batch=512), "prompt")
    settings = read_settings()
    assert settings["model"] == "x"
    assert set(settings["bench"]) == {"another machine", machine()}
    assert (saved_setting(), saved_setting("prompt")) == (Setting(3), Setting(2, n_batch=512))


def test_a_setting_that_an_older_version_saved_is_read() -> None:
    saved = {"n_threads": 3, "kv_type": "q8_0", "flash_attention": True, "repack": False}
    write_settings({"bench": {machine(): saved}})
    assert saved_setting() == Setting(3, "q8_0", repack=False)


@pytest.mark.parametrize(
    "value",
    [
        *(3, None, {}, {"n_threads": 0}, {"n_threads": "4", "kv_type": "f16", "flash_attention": True, "repack": True}),
        {"n_threads": 4, "kv_type": "f32", "flash_attention": True, "repack": True},
        {"n_threads": 4, "kv_type": ["f16"], "flash_attention": True, "repack": True},
        {"n_threads": 4, "kv_type": "q8_0", "flash_attention": False, "repack": True},
        {"n_threads": 4, "kv_type": "f16", "flash_attention": 1, "repack": True},
        {"n_threads": 4, "kv_type": "f16", "flash_attention": True, "repack": True, "n_batch": 0},
        {"n_threads": 4, "kv_type": "f16", "flash_attention": True, "repack": True, "n_batch": "512"},
    ],
)
def test_a_saved_setting_that_makes_no_sense_is_none(value: object) -> None:
    for machines in ({machine(): value}, value):
        write_settings({"bench": machines, "bench_prompt": machines})
        assert saved_setting() is saved_setting("prompt") is None
        assert choose(workload="prompt").n_batch == 512


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "--threads"),
        (["--threads", "two"], "--threads"),
        (["--kv-type", "f16,q5_0"], "q4_0"),
        (["--repack", "yes"], "on"),
        (["--n-batch", "0"], "--n-batch"),
        (["--workload", "serve", "--n-prompt", "512"], "512"),
        (["--kv-type", "q8_0", "--flash-attention", "off"], "flash attention"),
        (["--n-prompt", "2048"], "2048"),
    ],
)
def test_what_cannot_be_measured_is_explained(options: list[str], said: str) -> None:
    done = bench(*options)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_repetition_is_served_from_the_cache() -> None:
    prompts = [prompt_ids(number, 5, 3000) for number in range(20)]
    assert len({prompt[0] for prompt in prompts}) == len(prompts)
    assert all(len(prompt) == 5 and min(prompt) > 1 and max(prompt) < 3000 for prompt in prompts)
    short = SamplingParams(max_tokens=2)
    with load("demo", n_ctx=256) as engine:
        assert all(engine.generate(prompt, short, raw=True).stats.cached_tokens == 0 for prompt in prompts[:4])


def test_measuring_sets_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    original = Context.__init__

    def spy(self: Context, *arguments: Any, **options: Any) -> None:
        made.append(options)
        original(self, *arguments, **options)

    monkeypatch.setattr(Context, "__init__", spy)
    save_setting(Setting(1, n_batch=32))
    assert measure(demo_model(), Setting(1, "q4_0"), SMALL).error == ""
    assert measure(demo_model(), Setting(2, flash_attention=False), SMALL).error == ""
    assert measure(demo_model(), Setting(1, n_batch=64), replace(SMALL, name="serve", n_parallel=3)).error == ""
    assert [(one["n_threads"], one["kv_type"], one["flash_attention"]) for one in made] == [
        (1, "q4_0", True),
        (2, "f16", False),
        (1, "f16", True),
    ]
    assert [(one["n_seq_max"], one["n_batch"]) for one in made] == [(1, 128), (1, 128), (3, 64)]


def test_an_adapter_is_measured_with_its_model(tmp_path: Path) -> None:
    from gguf import GGUFReader

    adapter = as_gguf(ADAPTER, CHECKPOINT, tmp_path / "my.gguf")
    done = bench("--threads", "1", "--lora", f"{adapter}=0.5", "--json")
    assert done.returncode == 0, done.stderr
    (with_it,) = json.loads(done.stdout)["rows"]
    without = measure(demo_model(), Setting(1), SMALL)
    of_adapter = sum(int(tensor.n_bytes) for tensor in GGUFReader(adapter).tensors)
    assert with_it["bytes_per_token"] - without.bytes_per_token == of_adapter
    assert with_it["generation"]["median"] > 0
    failed = bench("--threads", "1", "--lora", str(demo_model()))
    assert (failed.returncode, "is no LoRA adapter" in failed.stderr.replace("\n", " ")) == (1, True)


def test_a_setting_that_does_not_run_is_a_row_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    failed = measure(tmp_path / "x.gguf", Setting(1), SMALL)
    assert "x.gguf" in failed.error
    assert failed.bandwidth_share(1.0) is None
    works = row(Setting(2), 1.0)
    assert fastest([failed, works], SMALL, physical=1) is works
    assert fastest([failed], SMALL, physical=1) is None
    value = report(demo_model(), SMALL, [failed, works], works, 1.0, saved=False)
    assert value["rows"][0]["prompt"] is None


def test_a_token_reads_all_weights_but_the_embedding_and_the_cache() -> None:
    from gguf import GGUFReader

    tensors = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(demo_model()).tensors}
    embedding = tensors.pop("token_embd.weight")
    row_of_embedding = embedding // 3000
    n_layer, n_embd, n_cells = 4, 256, 100
    weights = sum(tensors.values()) + row_of_embedding
    assert bytes_per_token(demo_model(), "f16", n_cells) == weights + 2 * 2 * n_layer * n_embd * n_cells
    assert bytes_per_token(demo_model(), "q8_0", n_cells) == weights + 2 * n_layer * n_cells * n_embd // 32 * 34


def test_the_share_of_the_bandwidth_is_bytes_by_speed_and_unknown_on_other_devices() -> None:
    one = Row(Setting(1), Speed.of([1.0]), Speed.of([4.0]), bytes_per_token=5)
    assert one.bandwidth_share(40.0) == 0.5
    assert Row(Setting(1), Speed.of([1.0]), Speed.of([4.0]), 5, n_gpu_layers=1).bandwidth_share(40.0) is None
    assert measure(demo_model(), Setting(1), replace(SMALL, n_parallel=2)).bandwidth_share(40.0) is None


def test_memory_is_read_at_some_speed_by_any_number_of_threads() -> None:
    assert all(memory_bandwidth(n, size=2**22, passes=1) > 0 for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("physical", "usable", "counts"), [(1, 1, [1]), (2, 2, [1, 2]), (8, 16, [4, 8, 16]), (6, 8, [3, 6, 8])]
)
def test_thread_counts_are_around_the_physical_cores(physical: int, usable: int, counts: list[int]) -> None:
    assert thread_counts(physical, usable) == counts


def test_without_lists_one_thing_is_changed_at_a_time() -> None:
    def speed(setting: Setting) -> float:
        return 10 + (setting.n_threads == 4) * 2 - setting.repack * 3 - (not setting.flash_attention)

    rows = list(sweep(lambda setting: row(setting, speed(setting)), 8, 16, SMALL))
    assert [one.setting for one in rows] == [
        Setting(8),
        Setting(4),
        Setting(16),
        Setting(4, repack=False),
        Setting(4, "q8_0", repack=False),
        Setting(4, flash_attention=False, repack=False),
    ]
    best = fastest(rows, SMALL, physical=8)
    assert best is rows[3]


def test_for_prompts_the_batch_is_searched_and_the_cache_stays_as_it_is() -> None:
    def speed(setting: Setting) -> float:
        return 10 - setting.repack * 3 + (setting.n_batch == 256)

    work = Workload.of("prompt", 512, 2, 1)
    rows = list(sweep(lambda setting: row(setting, speed(setting)), 2, 2, work))
    assert [one.setting for one in rows] == [
        Setting(2, n_batch=512),
        Setting(1, n_batch=512),
        Setting(2, repack=False, n_batch=512),
        Setting(2, repack=False, n_batch=128),
        Setting(2, repack=False, n_batch=256),
        Setting(2, flash_attention=False, repack=False, n_batch=256),
    ]
    assert fastest(rows, work, physical=2) is rows[4]


def test_the_default_has_the_benefit_of_the_doubt() -> None:
    default = row(Setting(8), 10.0)
    for other, speed, wins in [
        (Setting(8, "q8_0"), 10.4, False),
        (Setting(8, "q8_0"), 10.6, True),
        (Setting(4), 10.1, False),
        (Setting(4), 10.3, True),
        (Setting(8, repack=False), 10.1, False),
        (Setting(8, flash_attention=False), 10.3, True),
    ]:
        rows = [default, row(other, speed)]
        assert (fastest(rows, SMALL, physical=8) is rows[1]) == wins


def test_repetitions_that_differ_much_are_unsteady() -> None:
    assert not Speed.of([5.0, 5.1, 4.9]).unsteady
    assert Speed.of([5.0, 9.0, 4.9]).unsteady


def test_a_quantized_cache_is_saved_only_where_f16_lost() -> None:
    quantized = row(Setting(4, "q8_0"), 20.0)
    assert setting_to_save([quantized], quantized) == Setting(4)
    assert setting_to_save([quantized, row(Setting(4), 10.0)], quantized) == Setting(4, "q8_0")


def test_combinations_leave_out_what_llama_cpp_refuses() -> None:
    assert combinations([1], ["f16", "q8_0"], [False], [True]) == [Setting(1, flash_attention=False)]
    assert Grid().settings(2, SMALL) is None
    assert Grid(repack="off").settings(2, SMALL) == [Setting(2, repack=False)]
    with pytest.raises(WeblabError, match="flash attention"):
        Grid(kv_type="q4_0", flash_attention="off").settings(2, SMALL)
