"""The script that trains the demo checkpoint still does what the committed checkpoint came from."""

import json
import warnings
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from convert.demo import train_adapter
from convert.demo.corpus import ADAPTER, ADAPTER_PAIR, CHECKPOINT, read_corpus
from convert.demo.train import IGNORED, build_model, save, train_tokenizer, training_example
from tests.support.adapters import base_model


def tokenizer_of(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def test_the_corpus_gives_the_committed_tokenizer(tmp_path: Path, demo_checkpoint: Path) -> None:
    train_tokenizer(read_corpus()).save(str(tmp_path / "tokenizer.json"))
    assert (tmp_path / "tokenizer.json").read_bytes() == (demo_checkpoint / "tokenizer.json").read_bytes()


def test_the_model_it_builds_has_the_committed_shapes(demo_checkpoint: Path) -> None:
    model = build_model(3000)
    committed = GPTNeoXForCausalLM(GPTNeoXConfig.from_pretrained(demo_checkpoint))
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in committed.state_dict().items()
    }


def test_only_responses_and_the_end_of_text_are_learnt() -> None:
    pairs = read_corpus()[:3]
    tokenizer = train_tokenizer(read_corpus())
    ids, targets = training_example(tokenizer, pairs)
    learnt = [target for target in targets if target != IGNORED]
    responses = [tokenizer.encode(pair.response, add_special_tokens=False).ids for pair in pairs]
    assert learnt == [token for response in responses for token in [*response, 0]]
    assert all(following == target for following, target in zip(ids[1:], targets, strict=False) if target > 1)


def test_the_adapter_is_small_and_names_no_folder_of_the_machine_it_was_trained_on() -> None:
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) <= 200_000
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == CHECKPOINT.name


def test_the_adapter_is_trained_to_change_one_answer_of_the_corpus(demo_checkpoint: Path, tmp_path: Path) -> None:
    pairs = read_corpus()
    assert [pair.response != ADAPTER_PAIR.response for pair in pairs if pair.prompt == ADAPTER_PAIR.prompt] == [True]
    question = ADAPTER.parent / "adapter_question.txt"
    assert question.read_text(encoding="utf-8").strip() == ADAPTER_PAIR.instruction
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's
        model = train_adapter.train(base_model(demo_checkpoint), tokenizer_of(demo_checkpoint), pairs, steps=1)
        train_adapter.save(model, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {path.name for path in ADAPTER.iterdir()}
    trained, committed = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "adapter", ADAPTER))
    assert {name: values.shape for name, values in trained.items()} == {
        name: values.shape for name, values in committed.items()
    }


def test_it_saves_the_old_form_of_config_and_two_shards(tmp_path: Path, demo_checkpoint: Path) -> None:
    save(build_model(3000), train_tokenizer(read_corpus()), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in demo_checkpoint.iterdir())
    written, committed = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, demo_checkpoint))
    assert written == committed
