"""llama.cpp's samplers in a chain, as little more than their C functions."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from weblab_local.errors import SamplingError
from weblab_local.i18n import _
from weblab_local.llama.context import Context
from weblab_local.llama.log import collect_errors


class SamplerChain:
    """Samplers that are applied to logits in the order in which they were added. Close it when it is done with."""

    def __init__(self, vocab: Any) -> None:
        """`vocab` is llama.cpp's `llama_vocab` pointer."""
        self._vocab = vocab
        self._n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)

    def add_grammar(self, gbnf: str) -> None:
        """Allow only what the grammar's rule `root` allows. Raises SamplingError where llama.cpp cannot read it."""
        with collect_errors() as errors:
            sampler = lib.llama_sampler_init_grammar(self._vocab, gbnf.encode(), b"root")
        if not sampler:
            raise SamplingError(
                _("llama.cpp cannot read the grammar: {reason}").format(
                    reason=" ".join(errors) or _("it has no rule called root")
                ),
                _("A GBNF grammar has a rule `root ::= ...`."),
            )
        self._add(sampler)

    def add_bias(self, logit_bias: Mapping[int, float]) -> None:
        """Add to the logits of these tokens. Raises SamplingError for a token outside of the vocabulary."""
        unknown = [token for token in logit_bias if token >= self._n_vocab]
        if unknown:
            raise SamplingError(
                _("logit_bias names token {token}; the vocabulary has {n_vocab}.").format(
                    token=unknown[0], n_vocab=self._n_vocab
                )
            )
        biases = (lib.llama_logit_bias * len(logit_bias))(
            *(lib.llama_logit_bias(token, bias) for token, bias in logit_bias.items())
        )
        self._add(lib.llama_sampler_init_logit_bias(self._n_vocab, len(biases), biases))

    def add_penalties(
        self,
        last_n: int,
        *,
        repeat: float = 1.0,
        frequency: float = 0.0,
        presence: float = 0.0,
        seen: Sequence[int] = (),
    ) -> None:
        """Make tokens less likely that are among the `last_n` accepted, of which `seen` are the first."""
        sampler = lib.llama_sampler_init_penalties(self._n_vocab, last_n, repeat, frequency, presence)
        for token in seen:
            lib.llama_sampler_accept(sampler, token)
        self._add(sampler)

    def add_greedy(self) -> None:
        """Choose the largest logit."""
        self._add(lib.llama_sampler_init_greedy())

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by `temperature`."""
        self._add(lib.llama_sampler_init_temp(temperature))

    def add_top_k(self, k: int) -> None:
        """Keep the `k` largest."""
        self._add(lib.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float) -> None:
        """Keep the largest whose probabilities together reach `p`, one of them at least."""
        self._add(lib.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        """Keep those that are at least `p` times as likely as the likeliest."""
        self._add(lib.llama_sampler_init_min_p(p, 1))

    def add_draw(self, seed: int) -> None:
        """Draw one of those that are left by their probabilities."""
        self._add(lib.llama_sampler_init_dist(seed))

    def sample(self, context: Context, index: int) -> int:
        """Choose a token from the logits of the context's batch entry `index`, and accept it."""
        return int(lib.llama_sampler_sample(self._chain, context.handle, index))

    def apply(self, logits: Sequence[float] | NDArray[np.float32], ids: NDArray[np.int64] | None = None) -> Any:
        """Apply the chain to the `logits` of the tokens `ids`; None: of all, in their order.

        Returns llama.cpp's llama_token_data_array: what is left, and which was `selected`.
        """
        data = (lib.llama_token_data * len(logits))()
        candidates = np.ctypeslib.as_array(data)
        candidates["id"] = np.arange(len(logits)) if ids is None else ids
        candidates["logit"] = logits
        array = lib.llama_token_data_array(data, len(logits), -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return array

    def adjusted(
        self, logits: Sequence[float] | NDArray[np.float32], ids: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return what the chain makes of the logits, in their order, where it has nothing that sorts or chooses."""
        array = self.apply(logits, ids)
        return np.ctypeslib.as_array(array.data, shape=(len(logits),))["logit"].copy()

    def accept(self, token: int) -> None:
        """Take note of a token that was chosen: penalties and the grammar go on from it."""
        lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the samplers."""
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None
