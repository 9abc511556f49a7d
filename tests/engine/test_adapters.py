"""`load(lora=...)`: llama.cpp computes with an adapter as transformers does with peft, and only with one that fits."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from convert.demo.corpus import ADAPTER, ADAPTER_PAIR, CHECKPOINT, read_corpus
from tests.support import reference
from tests.support.adapters import adapted_by_peft, as_gguf, random_adapter
from tests.support.command_line import CommandLine
from weblab_local import ModelFileError, ModelNotFoundError, SamplingParams, WeblabError, load
from weblab_local.chat.saved import load_session, save_session
from weblab_local.engine.engine import Engine
from weblab_local.evaluation.result_cache import cache_of
from weblab_local.models.loading import plan
from weblab_local.models.store import ADAPTER_SUFFIX, demo_model, models_dir

GREEDY = SamplingParams(temperature=0, max_tokens=64)
PROMPTS = [ADAPTER_PAIR.prompt, *(pair.prompt for pair in read_corpus()[:4])]
BASE_ANSWER = next(pair.response for pair in read_corpus() if pair.prompt == ADAPTER_PAIR.prompt)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's adapter in llama.cpp's form."""
    return as_gguf(ADAPTER, CHECKPOINT, tmp_path_factory.mktemp("adapter") / f"demo{ADAPTER_SUFFIX}")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A second adapter, of random values, as peft has it and as llama.cpp does."""
    folder = tmp_path_factory.mktemp("noise")
    saved = random_adapter(CHECKPOINT, folder / "noise", exact=False, target_modules=["dense", "dense_4h_to_h"])
    return saved, as_gguf(saved, CHECKPOINT, folder / "noise.gguf")


def opened(path: Path, *adapters: tuple[Path, float], **options: Any) -> Engine:
    return load(str(path), lora=adapters, n_threads=1, n_ctx=512, **options)


def answers(engine: Engine, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    return [list(engine.generate(reference.encode(prompt), GREEDY, raw=True).token_ids) for prompt in prompts]


@torch.inference_mode()
def expected(model: Any, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """transformers' greedy tokens, without the end of text."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([reference.encode(prompt)])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, pad_token_id=1
        )
        tokens = output[0, ids.shape[1] :].tolist()
        found.append(tokens[: tokens.index(reference.END)] if reference.END in tokens else tokens)
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return adapted_by_peft(CHECKPOINT, ADAPTER)


def test_greedy_tokens_are_those_of_transformers_with_peft(demo_f16: Path, adapter: Path, model: Any) -> None:
    with opened(demo_f16, (adapter, 1.0)) as engine:
        assert answers(engine) == expected(model)
        assert engine.generate(ADAPTER_PAIR.instruction, GREEDY).text == ADAPTER_PAIR.response
        assert [(a.name, a.scale, a.licence) for a in engine.adapters] == [("weblab-demo-adapter", 1.0, "mit")]
        assert "weblab-demo-adapter (1)" in engine.description()[0]


def test_a_scale_of_0_and_no_adapter_give_the_bases_answers(demo_f16: Path, adapter: Path) -> None:
    with opened(demo_f16, (adapter, 0.0)) as engine:
        off = answers(engine)
    with opened(demo_f16) as engine:
        assert off == answers(engine) == expected(reference.model())
        assert engine.generate(ADAPTER_PAIR.instruction, GREEDY).text == BASE_ANSWER


def test_a_scale_is_pefts(demo_f16: Path, noise: tuple[Path, Path]) -> None:
    model = adapted_by_peft(CHECKPOINT, noise[0])
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.25)
    ids = reference.encode(PROMPTS[0])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    wanted = logits.log_softmax(dim=1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
    found = []
    for scale in (0.25, 1.0):
        with opened(demo_f16, (noise[1], scale)) as engine:
            (score,) = engine.score(ids[:1], [ids[1:]])
            found.append(np.abs(score.loglikelihood - wanted.sum()))
    assert found[0] < 0.05 < found[1]


def test_several_adapters_add_up_and_several_sequences_have_them(
    demo_f16: Path, adapter: Path, noise: tuple[Path, Path]
) -> None:
    with opened(demo_f16, (noise[1], 0.5), (noise[1], -0.5), (adapter, 1.0), n_parallel=2) as engine:
        streams = [engine.stream(reference.encode(prompt), GREEDY, raw=True) for prompt in PROMPTS[:2]]
        together = [[token for chunk in stream for token in chunk.token_ids] for stream in streams]
    with opened(demo_f16, (adapter, 1.0)) as engine:
        assert together == answers(engine, PROMPTS[:2])


def test_an_adapter_is_switched_off_and_on(demo_f16: Path, adapter: Path, model: Any) -> None:
    """In a loaded engine, and nothing that was computed with it is used without it."""
    adapted, base = expected(model), expected(reference.model())
    with opened(demo_f16, (adapter, 1.0), n_parallel=2) as engine:
        assert answers(engine) == adapted
        with_it = engine.kv_settings
        engine.read_ahead(reference.encode(PROMPTS[0]))
        engine.scale_adapters([0.0])
        assert answers(engine) == base
        assert [a.scale for a in engine.adapters] == [0.0]
        assert engine.kv_settings != with_it
        engine.scale_adapters([1])
        assert answers(engine) == adapted
        assert engine.kv_settings == with_it


def test_it_is_not_switched_in_the_middle_of_an_answer(adapter: Path) -> None:
    endless = SamplingParams(temperature=0, max_tokens=400, logit_bias={reference.END: -math.inf})
    with load("demo", lora=[(adapter, 1.0)], n_ctx=512) as engine:
        with engine.stream(ADAPTER_PAIR.instruction, endless) as stream:
            next(stream)
            with pytest.raises(WeblabError, match="An answer is being computed"):
                engine.scale_adapters([0.0])
        assert engine.generate(ADAPTER_PAIR.instruction, GREEDY).text == ADAPTER_PAIR.response


@pytest.mark.parametrize("scales", [[], [1.0, 1.0], [float("nan")], ["1"], [True]])
def test_scales_that_are_none_change_nothing(adapter: Path, scales: list[Any]) -> None:
    with load("demo", lora=[(adapter, 1.0)], n_ctx=512) as engine:
        with pytest.raises(WeblabError, match="scale"):
            engine.scale_adapters(scales)
        assert engine.generate(ADAPTER_PAIR.instruction, GREEDY).text == ADAPTER_PAIR.response
        assert [a.scale for a in engine.adapters] == [1.0]


def test_without_adapters_there_is_nothing_to_switch() -> None:
    with load("demo", n_ctx=256) as engine:
        engine.scale_adapters([])
        with pytest.raises(WeblabError, match="There are 0 adapters"):
            engine.scale_adapters([1.0])


def test_a_saved_state_is_of_its_adapters(demo_f16: Path, adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.session"
    with opened(demo_f16, (adapter, 1.0)) as engine:
        chat = engine.chat()
        chat.send(ADAPTER_PAIR.instruction, GREEDY)
        save_session(chat, path, with_state=True)
        n_tokens = chat.tokens_used
    restored = []
    for adapters in ([(adapter, 1.0)], [(adapter, 0.5)], []):
        with opened(demo_f16, *adapters) as engine:
            restored.append(load_session(engine, path).tokens_restored)
    assert restored == [n_tokens, 0, 0]


def test_kept_results_are_of_their_adapters(demo_f16: Path, adapter: Path) -> None:
    paths = set()
    for adapters in ([(adapter, 1.0)], [(adapter, 0.5)], []):
        with opened(demo_f16, *adapters) as engine, cache_of(engine) as cache:
            paths.add(cache.path)
    assert len(paths) == 3


def test_the_plan_counts_its_bytes(demo_f16: Path, adapter: Path) -> None:
    size = sum(int(tensor.n_bytes) for tensor in GGUFReader(adapter).tensors)
    assert plan(demo_f16, lora=[(adapter, 1.0)]).total == plan(demo_f16).total + size
    assert plan(demo_f16, lora=[(adapter, 1.0)] * 2).total == plan(demo_f16).total + 2 * size


def test_it_is_found_by_its_name_in_the_store(adapter: Path) -> None:
    models_dir().mkdir(parents=True)
    (models_dir() / f"mine{ADAPTER_SUFFIX}").write_bytes(adapter.read_bytes())
    with load("demo", lora=[("mine", 1.0)], n_ctx=256) as engine:
        assert engine.generate(ADAPTER_PAIR.instruction, GREEDY).text == ADAPTER_PAIR.response
    with pytest.raises(ModelNotFoundError, match="There is no adapter called 'yours'"):
        load("demo", lora=[("yours", 1.0)])


@pytest.fixture
def weblab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "100")
    return CommandLine(monkeypatch, capsys)


@pytest.mark.parametrize(("option", "answer"), [("", ADAPTER_PAIR.response), ("=0", BASE_ANSWER)], ids=["1", "0"])
def test_the_command_line_takes_it(weblab: CommandLine, adapter: Path, option: str, answer: str) -> None:
    arguments = ("--model", "demo", "--threads", "1", "--temperature", "0", "--lora", f"{adapter}{option}")
    assert weblab("generate", ADAPTER_PAIR.instruction, *arguments).stdout == f"{answer}\n"


def test_the_list_of_models_names_adapters_and_their_base(weblab: CommandLine, adapter: Path) -> None:
    models_dir().mkdir(parents=True)
    (models_dir() / "one.gguf").write_bytes(demo_model().read_bytes())
    (models_dir() / f"mine{ADAPTER_SUFFIX}").write_bytes(adapter.read_bytes())
    (models_dir() / f"spoiled{ADAPTER_SUFFIX}").write_bytes(b"GGUF")
    lines = weblab("models").stdout.splitlines()
    assert lines[-2:] == ["Adapter mine, of weblab-demo-instruction-sft", "Adapter spoiled, of unknown"]


def test_the_command_line_says_what_is_no_scale(weblab: CommandLine, adapter: Path) -> None:
    done = weblab("generate", "x", "--model", "demo", "--lora", f"{adapter}=much")
    assert (done.code, done.stdout) == (1, "")
    assert "'much' is no scale of an adapter" in done.stderr


def written(
    path: Path,
    adapter: Path,
    keys: Callable[[GGUFWriter], object] | None = None,
    tensors: Callable[[dict[str, Any]], object] = lambda _: None,
    **texts: str | None,
) -> Path:
    """The adapter again, with other texts for its keys (_ for .), other keys, or other tensors."""
    wanted = {"general_architecture": "gptneox", "general_type": "adapter", "adapter_type": "lora"} | texts
    writer = GGUFWriter(path, str(wanted.pop("general_architecture")))
    for key, text in wanted.items():
        if text is not None:
            writer.add_string(key.replace("_", "."), text)
    (keys or (lambda writer: writer.add_float32("adapter.lora.alpha", 4.0)))(writer)
    found = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(adapter).tensors}
    tensors(found)
    for name, values in found.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_written_anew_is_taken(adapter: Path, tmp_path: Path) -> None:
    """Or what follows would say nothing."""
    with load("demo", lora=[(written(tmp_path / "same.gguf", adapter), 1.0)], n_ctx=256) as engine:
        assert engine.generate(ADAPTER_PAIR.instruction, GREEDY).text == ADAPTER_PAIR.response


FIRST = "blk.0.attn_qkv.weight.lora_a"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a model": ({"general_type": "model"}, "is no LoRA adapter"),
    "another kind": ({"adapter_type": "control"}, "is no LoRA adapter"),
    "no kind": ({"adapter_type": None}, "is no LoRA adapter"),
    "another architecture": ({"general_architecture": "llama"}, "is an adapter of another model than this"),
    "alpha of another type": ({"keys": lambda w: w.add_uint32("adapter.lora.alpha", 4)}, "is damaged, or no adapter"),
    "an alpha that is none": (
        {"keys": lambda w: w.add_float32("adapter.lora.alpha", float("nan"))},
        "is damaged, or no adapter",
    ),
    "half a pair": ({"tensors": lambda t: t.pop(FIRST)}, "is damaged, or no adapter"),
    "another tensor": ({"tensors": lambda t: t.update({"x": np.zeros(4, np.float32)})}, "is damaged, or no adapter"),
    "nothing": ({"tensors": lambda t: t.clear()}, "is damaged, or no adapter"),
    "a wider model": (
        {"tensors": lambda t: t.update({FIRST: np.zeros((2, 512), np.float32)})},
        "is an adapter of another model than this",
    ),
    "another rank": (
        {"tensors": lambda t: t.update({FIRST: np.zeros((3, 256), np.float32)})},
        "is an adapter of another model than this",
    ),
    "a deeper model": (
        {"tensors": lambda t: [t.update({n.replace("blk.0", "blk.9"): t.pop(n)}) for n in list(t) if "blk.0" in n]},
        "is an adapter of another model than this",
    ),
    "a norm": (
        {"tensors": lambda t: [t.update({n.replace("attn_qkv", "attn_norm"): t.pop(n)}) for n in list(t)]},
        "is an adapter of another model than this",
    ),
    "whole numbers": (
        {"tensors": lambda t: t.update({FIRST: np.zeros((2, 256), np.int32)})},
        "is damaged, or no adapter",
    ),
}


@pytest.mark.parametrize("form", WRONG)
def test_a_file_that_does_not_fit_is_refused_before_llama_cpp_sees_it(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    options, message = WRONG[form]
    path = written(tmp_path / "wrong.gguf", adapter, **options)
    monkeypatch.setattr("llama_cpp.llama_cpp.llama_adapter_lora_init", None)
    with pytest.raises(ModelFileError, match=message):
        load("demo", lora=[(path, 1.0)], n_ctx=256)


def test_a_file_that_was_cut_off_is_refused(adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"damaged|no GGUF"):
        load("demo", lora=[(path, 1.0)])


def test_the_refusal_names_the_base(adapter: Path, tmp_path: Path) -> None:
    def named(writer: GGUFWriter) -> None:
        writer.add_base_model_name(0, "weblab-10b")

    path = written(tmp_path / "other.gguf", adapter, named, general_architecture="llama")
    with pytest.raises(ModelFileError, match="It names weblab-10b as its model"):
        load("demo", lora=[(path, 1.0)])


def test_a_model_or_no_gguf_in_its_place() -> None:
    with pytest.raises(ModelFileError, match="is no LoRA adapter"):
        load("demo", lora=[(demo_model(), 1.0)])
    with pytest.raises(ModelFileError, match="is no GGUF"):
        load("demo", lora=[(ADAPTER / "adapter_model.safetensors", 1.0)])


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_none(adapter: Path, scale: float) -> None:
    with pytest.raises(WeblabError, match="The scale of an adapter is a number"):
        load("demo", lora=[(adapter, scale)])
