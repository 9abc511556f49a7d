"""Special tokens of a fine-tune: prompted with where that is asked for, and as ends of an answer, by their ids."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.server.support import serving
from tests.support.checkpoints import random_checkpoint, tokenizer
from tests.support.conversions import converted
from tests.support.engines import GREEDY
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import PromptError, PromptTooLong

SPECIALS = ["### End", "### Response:", "<|user|>", "<|user|>again"]
FIRST = 330
"""The id of the first of them, in the made vocabulary."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and these tokens."""
    folder = random_checkpoint(
        tmp_path_factory.mktemp("special") / "model", hidden=64, intermediate=128, vocab_size=FIRST + len(SPECIALS)
    )
    made = tokenizer()
    made.add_special_tokens(SPECIALS)
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    (path,) = converted(folder, tmp_path_factory.mktemp("special_output"), "Q8_0")
    with Engine(path, n_threads=1, n_ctx=256) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@given(parts=st.lists(st.sampled_from([*SPECIALS, "<|endoftext|>", "###", "  ", "\n", "か\u3099", "<|user", "End"])))
def test_they_are_found_as_transformers_finds_them(engine: Engine, reference: Any, parts: list[str]) -> None:
    text = "".join(parts)
    assert engine.tokenize(text, special=True) == reference(text, add_special_tokens=False)["input_ids"]


def test_without_being_asked_for_they_are_text(engine: Engine, reference: Any) -> None:
    text = "### Response:a<|user|>"
    assert max(engine.tokenize(text)) < FIRST
    assert engine.tokenize(text) == reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_a_raw_prompt_can_have_them_and_no_other(engine: Engine) -> None:
    ids = [FIRST + 2, *engine.tokenize("a"), FIRST + 1]
    one = replace(GREEDY, max_tokens=1)
    done = engine.generate("<|user|>a### Response:", one, raw=True, special=True)
    assert done.stats.prompt_tokens == len(ids)
    assert done.token_ids == engine.generate(ids, one, raw=True).token_ids
    with pytest.raises(PromptError, match="raw"):
        engine.generate("a", one, special=True)


def test_too_many_are_refused_before_the_rest_is_looked_at(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="more than 256"):
        engine.generate("<|user|>" * 300, GREEDY, raw=True, special=True)


def test_a_stop_that_is_one_ends_the_answer(engine: Engine) -> None:
    """Its text never comes out, so that no comparison of texts could find it."""
    always = SamplingParams(temperature=0, max_tokens=5, logit_bias={FIRST + 1: 1000.0})
    assert engine.generate("a", always, raw=True).finish_reason == "length"
    done = engine.generate("a", replace(always, stop=("never", "### Response:")), raw=True)
    assert (done.finish_reason, done.text, done.token_ids) == ("stop", "", ())


def test_over_http_they_are_text_unless_asked_for(engine: Engine) -> None:
    with serving(engine) as server:

        def n_tokens(**fields: bool) -> int:
            done = server.client.completions.create(
                model="default", prompt="<|user|>a", max_tokens=1, temperature=0, extra_body=fields
            )
            assert done.usage is not None
            return done.usage.prompt_tokens

        assert n_tokens(special=True) == 1 + len(engine.tokenize("a"))
        assert n_tokens() == len(engine.tokenize("<|user|>a"))

        bias = {str(FIRST + 1): 100}
        done = server.client.completions.create(
            model="default", prompt="a", max_tokens=5, temperature=0, logit_bias=bias, stop="### Response:"
        )
        assert (done.choices[0].finish_reason, done.choices[0].text) == ("stop", "")
