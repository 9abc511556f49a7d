"""lm-eval's model class on the engine, beside lm-eval's own `hf` model on the same checkpoint."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model

from convert.demo.corpus import read_corpus
from tests.evaluation.harness import hf_model
from tests.support.conversions import ROOT, converted
from weblab_local.engine.engine import Engine
from weblab_local.errors import EvaluationError, ModelNotFoundError, PromptError
from weblab_local.evaluation.data import load_questions
from weblab_local.evaluation.harness import Results, run_tasks, scores
from weblab_local.evaluation.lm_eval_model import EngineLM
from weblab_local.evaluation.tasks import TASKS, Task

PAIRS = read_corpus()


def instances(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, of, idx) for idx, of in enumerate(arguments)]


def mean_difference(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


@pytest.fixture(scope="module")
def hf(demo_checkpoint: Path) -> LM:
    return hf_model(demo_checkpoint, separate=False)


@pytest.fixture(scope="module")
def hf_separate(demo_checkpoint: Path) -> LM:
    return hf_model(demo_checkpoint, separate=True)


def loglikelihoods(results: Results, task: Task) -> list[float]:
    return [answer[0] for sample in results["samples"][task.name] for answer in sample["filtered_resps"]]


def assert_agree(ours: Results, theirs: Results, tasks: Sequence[Task]) -> None:
    """The card's metrics are the same, and log-likelihoods within 0.02 nats per request, in the mean."""
    for task in tasks:
        assert scores(ours, task) == scores(theirs, task)
    first, second = ([x for task in tasks if task.choices for x in loglikelihoods(of, task)] for of in (ours, theirs))
    assert mean_difference(first, second) <= 0.02


def test_the_benchmark_gives_what_lm_evals_hf_model_gives(
    demo_engine: Engine, hf_separate: LM, small_data: Path
) -> None:
    tasks = list(TASKS.values())
    questions = load_questions(tasks, small_data)
    lm = EngineLM(demo_engine, separate=True)
    ours, theirs = (run_tasks(model, tasks, questions, lm) for model in (lm, hf_separate))
    assert_agree(ours, theirs, tasks)
    for task in tasks:
        prompts, expected = ([sample["arguments"] for sample in of["samples"][task.name]] for of in (ours, theirs))
        assert prompts == expected
    assert ours["versions"] == {task.name: task.version for task in tasks}
    assert ours["n-shot"] == {task.name: task.shots for task in tasks}


def test_by_default_texts_are_tokenized_as_lm_eval_does(demo_engine: Engine, hf: LM) -> None:
    """White space at a context's end goes to the continuation, and both are tokenized in one piece."""
    rng = random.Random(2)
    arguments = [
        (pair.prompt + rng.choice(["", "\n", "  "]), rng.choice(PAIRS).response) for pair in rng.sample(PAIRS, 16)
    ]
    arguments += [("", "富士山"), ("New", " York"), ("か\u3099", "き"), ("絵文字は", "🗻です")]
    requests = instances("loglikelihood", arguments)
    ours, theirs = EngineLM(demo_engine).loglikelihood(requests), hf.loglikelihood(requests)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert mean_difference([a for a, _ in ours], [a for a, _ in theirs]) <= 0.02


def test_what_does_not_fit_is_cut_off_at_the_left(demo_engine: Engine, hf: LM) -> None:
    text = "".join(pair.instruction + pair.response for pair in PAIRS)
    assert len(demo_engine.tokenize(text)) > 2 * demo_engine.longest_sequence
    requests = instances("loglikelihood", [(text, "はい"), (text[10:], "いいえ、違います。")])
    ours, theirs = EngineLM(demo_engine).loglikelihood(requests), hf.loglikelihood(requests)
    assert mean_difference([a for a, _ in ours], [a for a, _ in theirs]) <= 0.02
    with pytest.raises(PromptError):
        EngineLM(demo_engine).loglikelihood(instances("loglikelihood", [("はい", text)]))


def test_the_log_likelihood_of_whole_texts(demo_engine: Engine, hf: LM) -> None:
    """Of nothing, of short texts, and of one that takes three windows."""
    long = "".join(pair.instruction + pair.response for pair in PAIRS)
    length = len(demo_engine.tokenize(long))
    assert 2 * demo_engine.longest_sequence < length
    requests = instances("loglikelihood_rolling", [("",), ("山",), (PAIRS[3].response,), (long[:6000],)])
    ours, theirs = EngineLM(demo_engine).loglikelihood_rolling(requests), hf.loglikelihood_rolling(requests)
    assert ours[0] == 0
    assert ours[1:] == pytest.approx(theirs[1:], abs=0.02, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"until": ["\n"], "max_gen_toks": 60, "do_sample": False}, ["\n"]),
        ({"until": ["。", "ます"], "max_gen_toks": 40}, ["。", "ます"]),
        ({"until": "、", "max_gen_toks": 40}, ["、"]),
        ({"until": [""], "max_gen_toks": 12}, []),
        ({"max_gen_toks": 3}, []),
    ],
)
def test_generated_text_ends_before_its_stops(
    demo_engine: Engine, hf: LM, options: dict[str, Any], stops: list[str]
) -> None:
    requests = instances("generate_until", [(pair.prompt, options) for pair in PAIRS[:3]])
    ours = EngineLM(demo_engine).generate_until(requests)
    assert not any(stop in text for text in ours for stop in stops)
    if options.get("until") != [""]:
        assert ours == hf.generate_until(requests)


def test_a_prompt_for_generating_leaves_room_at_its_left(demo_engine: Engine, hf: LM) -> None:
    text = "".join(pair.instruction + pair.response for pair in PAIRS)
    requests = instances("generate_until", [(text, {"until": ["\n"], "max_gen_toks": 20}), ("", {"max_gen_toks": 4})])
    assert EngineLM(demo_engine).generate_until(requests)[0] == hf.generate_until(requests[:1])[0]
    assert isinstance(EngineLM(demo_engine).generate_until(requests[1:])[0], str)


def test_several_sequences_give_the_answers_of_one(demo_f16: Path, demo_engine: Engine, small_data: Path) -> None:
    tasks = list(TASKS.values())
    questions = load_questions(tasks, small_data)
    alone = EngineLM(demo_engine, separate=True)
    with Engine(demo_f16, n_parallel=4, n_ctx=8192, n_threads=1) as engine:
        four = EngineLM(engine, separate=True)
        ours, theirs = (run_tasks(lm, tasks, questions, lm) for lm in (four, alone))
    assert_agree(ours, theirs, tasks)


def test_the_model_is_in_lm_evals_registry_under_its_name() -> None:
    assert get_model("weblab-local") is EngineLM


def test_arguments_of_lm_evals_command_line_load_a_model() -> None:
    lm = EngineLM.create_from_arg_string("model=demo,n_threads=1,kv_type=q8_0", {"batch_size": 2, "device": "cpu"})
    with lm.engine as engine:
        assert (engine.n_parallel, engine.n_ctx, engine.n_threads, engine.kv_type) == (2, 4096, 1, "q8_0")
        assert engine.plan is not None
        assert engine.plan.n_batch == 512
    with pytest.raises(ModelNotFoundError, match=re.escape(repr(r"C:\モデル\x.gguf"))):
        EngineLM.create_from_arg_string(r"model=C:\モデル\x.gguf,n_threads=1", {})
    with pytest.raises(EvaluationError, match="pretrained"):
        EngineLM.create_from_arg_string("pretrained=demo", {})


TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: ["東京", "大阪"]
target_delimiter: ""
"""


def test_lm_evals_own_command_runs_it(tmp_path: Path) -> None:
    (tmp_path / "capitals.jsonl").write_text(
        '{"question": "日本の首都は"}\n{"question": "首都とは"}\n', encoding="utf-8"
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "capitals.yaml").write_text(TASK.format(data=tmp_path / "capitals.jsonl"), encoding="utf-8")
    model = ("--model", "weblab-local", "--model_args", "model=demo,n_threads=1")
    run = ("run", *model, "--tasks", str(tasks / "capitals.yaml"), "--output_path", str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-m", "weblab_local.evaluation", *run],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(found.read_text(encoding="utf-8"))["results"]["capitals"]["sample_len"] == 2


@pytest.fixture(scope="module")
def mini(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small model's checkpoint, and its F16."""
    if not (test_data / "jglue").is_dir():
        pytest.skip("there is no jglue in WEBLAB_TEST_DATA")
    checkpoint = test_data / "weblab-mini"
    (path,) = converted(checkpoint, tmp_path_factory.mktemp("mini"), "F16")
    return checkpoint, path


def test_jglue_itself_on_a_model_with_the_real_tokenizer(mini: tuple[Path, Path], test_data: Path) -> None:
    tasks = [TASKS[name] for name in ("jcommonsenseqa", "jnli", "jsquad")]
    questions = load_questions(tasks, test_data / "jglue")
    checkpoint, path = mini
    with Engine(path, n_threads=1) as engine:
        lm = EngineLM(engine, separate=True)
        ours, theirs = (
            run_tasks(model, tasks, questions, lm, limit=3) for model in (lm, hf_model(checkpoint, separate=True))
        )
    assert_agree(ours, theirs, tasks)
    assert ours["n-samples"]["jcommonsenseqa"] == {"original": 1119, "effective": 3}
