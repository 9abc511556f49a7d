"""Under a grammar the choice is that of llama.cpp's own chain, in which the grammar is first and sees all tokens."""

import ctypes
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from weblab_local.engine.sampler import Sampler
from weblab_local.engine.sampling import SamplingParams
from weblab_local.llama.context import Context
from weblab_local.llama.sampler_chain import SamplerChain
from weblab_local.llama.token_prefixes import TokenPrefixes
from weblab_local.llama.tokenizer import piece
from weblab_local.models.store import demo_model

N_CTX = 256
STEPS = 12
SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "any object": {},
    "text": {"type": "object", "properties": {"答え": {"type": "string"}}, "required": ["答え"]},
    "numbers": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    "choices": {"enum": [f"共通の始まり{n}" for n in range(300)]},
}


@pytest.fixture(scope="module")
def vocab() -> Iterator[object]:
    model = Llama(str(demo_model()), vocab_only=True, verbose=False)
    yield model._model.vocab
    model.close()


class LlamaChain:
    """llama.cpp's samplers in the order of `Sampler`, applied to the whole vocabulary."""

    def __init__(self, params: SamplingParams, vocab: Any) -> None:
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        samplers = [lib.llama_sampler_init_grammar(vocab, (params.gbnf() or "").encode(), b"root")]
        if params.repeat_penalty != 1:
            samplers.append(
                lib.llama_sampler_init_penalties(
                    lib.llama_vocab_n_tokens(vocab), N_CTX, params.repeat_penalty, 0.0, 0.0
                )
            )
        if params.is_greedy:
            samplers.append(lib.llama_sampler_init_greedy())
        else:
            samplers.append(lib.llama_sampler_init_temp(params.temperature))
            if params.top_k:
                samplers.append(lib.llama_sampler_init_top_k(params.top_k))
            if params.top_p < 1:
                samplers.append(lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p:
                samplers.append(lib.llama_sampler_init_min_p(params.min_p, 1))
            samplers.append(lib.llama_sampler_init_dist(params.seed or 0))
        for sampler in samplers:
            lib.llama_sampler_chain_add(self._chain, sampler)

    def choose(self, logits: NDArray[np.float32]) -> int:
        data = (lib.llama_token_data * len(logits))()
        view = np.ctypeslib.as_array(data)
        view["id"], view["logit"] = np.arange(len(logits)), logits
        array = lib.llama_token_data_array(data, len(logits), -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        lib.llama_sampler_free(self._chain)


def of(logits: NDArray[np.float32]) -> Context:
    return cast(Context, SimpleNamespace(logits=lambda _index: logits))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEMAS)),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.5, 3.0, 8.0]),
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
)
def test_the_tokens_are_those_of_llama_cpps_chain(
    vocab: object,
    name: str,
    seed: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
) -> None:
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        json_schema=SCHEMAS[name],
    )
    sampler, expected = Sampler(params, vocab, [], N_CTX), LlamaChain(params, vocab)
    draw = np.random.default_rng(seed)
    try:
        for _ in range(STEPS):
            logits = (spread * draw.standard_normal(lib.llama_vocab_n_tokens(vocab))).astype(np.float32)
            token = expected.choose(logits)
            assert sampler.sample(of(logits), 0, 1000) == token
            if lib.llama_vocab_is_eog(vocab, token):
                break
            expected.accept(token)
    finally:
        sampler.close()
        expected.close()


def test_a_token_begins_with_its_parent_and_none_is_asked_about_in_vain(vocab: object) -> None:
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    prefixes = TokenPrefixes(vocab)
    pieces = [piece(vocab, token) for token in range(n_vocab)]
    asked: list[int] = []

    def begins_a_number(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        asked.extend(ids.tolist())
        return np.array([bool(pieces[token]) and pieces[token].isdigit() for token in ids])

    found = prefixes.accepted(begins_a_number)
    assert found.tolist() == [token for token, text in enumerate(pieces) if text.isdigit()]
    assert len(asked) == len(set(asked)) < n_vocab / 4


@pytest.mark.parametrize("top_k", [1, 5])
def test_the_grammar_is_asked_about_few_tokens(vocab: object, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a text nearly everything is allowed: then only about the likeliest."""
    asked = []
    adjusted = SamplerChain.adjusted

    def counted(chain: SamplerChain, logits: Any, ids: Any = None) -> Any:
        if ids is not None:
            asked.append(len(ids))
        return adjusted(chain, logits, ids)

    monkeypatch.setattr(SamplerChain, "adjusted", counted)
    sampler = Sampler(SamplingParams(top_k=top_k, seed=1, grammar="root ::= [^\\n]+"), vocab, [], N_CTX)
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        sampler.sample(of(draw.standard_normal(lib.llama_vocab_n_tokens(vocab)).astype(np.float32)), 0, 1000)
    sampler.close()
    assert len(asked) == STEPS
    assert max(asked) <= max(64, 4 * top_k)
