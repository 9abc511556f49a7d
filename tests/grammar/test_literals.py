"""A choice of texts allows these texts and nothing else, however they begin; llama.cpp's own grammar decides."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import Llama

from weblab_local.grammar.literals import choice
from weblab_local.llama.sampler_chain import SamplerChain
from weblab_local.llama.tokenizer import Tokenizer
from weblab_local.models.store import demo_model

TEXTS = st.text(st.sampled_from('ab"\\日本 é'), max_size=6)


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield model
    model.close()


def allows(vocab: Any, grammar: str, text: str, end: int) -> bool:
    """Whether the grammar lets a model write `text` and end there."""
    chain = SamplerChain(vocab)
    chain.add_grammar(grammar)
    try:
        for token in [*Tokenizer(vocab).encode(text), end]:
            if chain.adjusted(np.zeros(1, np.float32), np.array([token]))[0] == -np.inf:
                return False
            if token != end:
                chain.accept(token)
        return True
    finally:
        chain.close()


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=12), others=st.lists(TEXTS, max_size=12))
def test_a_choice_is_just_its_texts(llama: Llama, texts: list[str], others: list[str]) -> None:
    vocab = llama._model.vocab
    grammar = f"root ::= {choice(texts)}"
    for text in {*texts, *others}:
        assert allows(vocab, grammar, text, llama.token_eos()) == (text in texts)


def test_what_many_texts_begin_with_is_said_once() -> None:
    grammar = choice([f"共通の始まり{n}" for n in range(1400)])
    assert grammar.count("共通の始まり") == 1
    assert choice(["aa", "aab", "aa"]) == '"aa" ("" | "b")'


def test_a_long_chain_of_beginnings_nests_no_deeper_than_llama_cpp_reads(llama: Llama) -> None:
    texts = ["a" * n for n in range(1, 1000)]
    assert allows(llama._model.vocab, f"root ::= {choice(texts)}", "a" * 500, llama.token_eos())
