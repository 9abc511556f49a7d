"""How the next token is chosen: the parameters, checked when they are made, and llama.cpp's samplers in their order.

The order is transformers': bias and penalties on the logits, a grammar, then temperature, top-k, top-p, min-p, then a
draw. The card of weblab-10b-instruction-sft samples with temperature 0.7 and top-p 0.95, and transformers adds its
default top-k of 50; these are the defaults here.
"""

import ctypes
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weblab_local.errors import WeblabError
from weblab_local.i18n import _

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from weblab_local.context import Context

MAX_SEED = 2**32 - 2
"""llama.cpp takes 2**32 - 1 as "any seed"."""
MAX_TOP_K = 2**31 - 1
MAX_BIAS = 1e6
MAX_NESTING = 200
"""llama.cpp's grammar parser calls itself for every parenthesis; some thousands overflow the thread's stack."""
MAX_RULES = 500
"""Of a grammar: llama.cpp follows them by recursion, and compares all places where an answer can be with each other."""
MAX_REPETITIONS = 2000
"""Of one repetition, with those inside of it: ((x{9}){9}){9} are 729."""
MAX_GRAMMAR = 100_000
"""Characters."""
_ENDS = {'"': '"', "[": "]", "#": "\n"}
"""How literals, character classes and comments of a GBNF grammar end, by how they begin."""


class SamplingError(WeblabError, ValueError):
    """A sampling parameter is out of its range, or a grammar cannot be read."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. SamplingError, when it is made, for a value that makes no sense.

    temperature         0 is greedy decoding, as is all below 1e-6; otherwise logits are divided by it
    top_k               only the k most likely tokens; 0 is off
    top_p               only the most likely tokens that together have this probability; 1 is off
    min_p               only tokens at least this likely, relative to the most likely one; 0 is off
    repeat_penalty      tokens of prompt and answer: positive logits are divided by it, negative multiplied; 1 is off
    presence_penalty    subtracted from the logit of a token that the answer has already
    frequency_penalty   subtracted from it as often as it has it
    seed                makes a run repeatable on the same machine; None draws one
    max_tokens          the answer has at most so many, and never more than fit the context
    stop                strings that end the answer and are not part of it
    logit_bias          {token id: what is added to its logit}; -inf forbids a token
    grammar             the answer follows this GBNF grammar
    json_schema         the answer is JSON that fits this JSON schema; {} is any JSON object
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int = 512
    stop: Sequence[str] = ()
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_whole("top_k", self.top_k, 0, MAX_TOP_K)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _check_number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, MAX_SEED)
        _check_whole("max_tokens", self.max_tokens, 1, None)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise SamplingError(
                _("stop should be strings that are not empty, and is {value!r}.").format(value=self.stop)
            )
        object.__setattr__(self, "stop", tuple(stop))
        if not isinstance(self.logit_bias, Mapping):
            raise SamplingError(
                _("logit_bias should map token ids to numbers, and is {value!r}.").format(value=self.logit_bias)
            )
        for token, bias in self.logit_bias.items():
            _check_whole(_("a token of logit_bias"), token, 0, None)
            if bias != -math.inf:
                _check_number(_("the logit_bias of token {token}").format(token=token), bias, -MAX_BIAS, MAX_BIAS)
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        if self.grammar is not None and self.json_schema is not None:
            raise SamplingError(_("Give a grammar or a json_schema, not both."))
        if self.grammar is not None:
            _check_grammar(self.grammar)
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise SamplingError(
                _("json_schema should be a JSON schema as a dictionary, and is {value!r}.").format(
                    value=self.json_schema
                )
            )
        self.gbnf()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < 1e-6  # less would make logits infinite

    def gbnf(self) -> str | None:
        """The grammar that the answer follows, None for free text. SamplingError for a schema that has none."""
        if self.json_schema is None:
            return self.grammar
        from weblab_local import json_schema

        try:
            return json_schema.grammar(json.dumps(dict(self.json_schema), allow_nan=False))
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise SamplingError(
                _("The JSON schema cannot be turned into a grammar: {error}").format(error=error)
            ) from None


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise SamplingError(
            _("{name} should be a number from {least:g} to {most:g}, and is {value!r}.").format(
                name=name, least=least, most=most, value=value
            )
        )


def _check_whole(name: str, value: object, least: int, most: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        message = (
            _("{name} should be a whole number from {least} on, and is {value!r}.")
            if most is None
            else _("{name} should be a whole number from {least} to {most}, and is {value!r}.")
        )
        raise SamplingError(message.format(name=name, least=least, most=most, value=value))


def _check_grammar(grammar: object) -> None:
    if not isinstance(grammar, str) or not grammar.strip():
        raise SamplingError(
            _("grammar should be a GBNF grammar, and is {value!r}.").format(value=grammar),
            _("Leave it None for free text."),
        )
    if "\0" in grammar or any("\ud800" <= character <= "\udfff" for character in grammar):
        raise SamplingError(_("The grammar holds a null character or half of a surrogate pair, which UTF-8 cannot."))
    if len(grammar) > MAX_GRAMMAR:
        raise SamplingError(
            _("The grammar has {n} characters; at most {most} can be read.").format(n=len(grammar), most=MAX_GRAMMAR)
        )
    text = _structure(grammar)
    steps = ({"(": 1, ")": -1}.get(character, 0) for character in text)
    deepest = max(accumulate(steps), default=0)
    if deepest > MAX_NESTING:
        raise SamplingError(
            _("The grammar nests {n} parentheses; at most {most} can be read.").format(n=deepest, most=MAX_NESTING)
        )
    rules = text.count("::=")
    if rules > MAX_RULES:
        raise SamplingError(_("The grammar has {n} rules; at most {most} can be read.").format(n=rules, most=MAX_RULES))
    repetitions = _most_repetitions(text)
    if repetitions > MAX_REPETITIONS:
        raise SamplingError(
            _("The grammar repeats something {n} times; at most {most} can be read.").format(
                n=repetitions, most=MAX_REPETITIONS
            )
        )


def _structure(grammar: str) -> str:
    """The grammar without its literals, character classes and comments: parentheses in those nest nothing."""
    kept, end, escaped = [], "", False
    for character in grammar:
        if not end:
            end = _ENDS.get(character, "")
            if not end:
                kept.append(character)
        elif escaped:
            escaped = False
        elif character == "\\" and end != "\n":
            escaped = True
        elif character == end or (end == "\n" and character == "\r"):
            end = ""
    return "".join(kept)


def _most_repetitions(grammar: str) -> int:
    """The largest product of the numbers in {...} that apply to the same thing, one inside of the other."""
    groups, closed, most = [1], 1, 1
    for step, least, greatest in re.findall(r"([()])|\{(\d*)(?:,(\d*))?\}|[^\s(){}]", grammar):
        if step == "(":
            groups.append(1)
            closed = 1
        elif step == ")":
            closed = groups.pop() if len(groups) > 1 else 1
            groups[-1] = max(groups[-1], closed)
        elif least or greatest:
            if len(least + greatest) > 9 or (greatest and int(least or 0) > int(greatest)):
                raise SamplingError(
                    _("The grammar repeats something {least} to {most} times.").format(least=least, most=greatest)
                )
            closed *= max(int(least or 1), int(greatest or 1), 1)
            groups[-1] = max(groups[-1], closed)
            most = max(most, closed)
        else:
            closed = 1
    return most


class Sampler:
    """llama.cpp's sampler chain for one answer. Has to be closed; used by one thread."""

    def __init__(self, params: SamplingParams, vocab: Any, prompt: Sequence[int], n_ctx: int) -> None:
        """Build the chain. `prompt`'s tokens count for the repeat penalty. SamplingError for a grammar's errors."""
        from llama_cpp import llama_cpp

        self._lib = llama_cpp
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        unknown = [token for token in params.logit_bias if token >= n_vocab]
        if unknown:
            raise SamplingError(
                _("logit_bias names token {token}; the vocabulary has {n_vocab}.").format(
                    token=unknown[0], n_vocab=n_vocab
                )
            )
        self._n_vocab = n_vocab
        has_grammar = params.grammar is not None or params.json_schema is not None
        self._may_run_dry = bool(params.logit_bias) or has_grammar
        has_penalty = params.repeat_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)
        self._only_largest = params.is_greedy and not has_grammar and not has_penalty
        """The chain's choice is the largest logit, biases added: no candidates need to be listed for that."""
        self._bias = params.logit_bias
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        try:
            for sampler in self._samplers(params, vocab, n_vocab, prompt, n_ctx):
                llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        except BaseException:
            self.close()
            raise

    def _samplers(
        self, params: SamplingParams, vocab: Any, n_vocab: int, prompt: Sequence[int], n_ctx: int
    ) -> list[Any]:
        lib = self._lib
        samplers: list[Any] = []
        gbnf = params.gbnf()
        if gbnf is not None:
            samplers.append(_grammar(vocab, gbnf))
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))(
                *(lib.llama_logit_bias(token, bias) for token, bias in params.logit_bias.items())
            )
            samplers.append(lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
        if params.repeat_penalty != 1:
            repeat = lib.llama_sampler_init_penalties(n_vocab, n_ctx, params.repeat_penalty, 0.0, 0.0)
            for token in prompt:
                lib.llama_sampler_accept(repeat, token)
            samplers.append(repeat)
        if params.presence_penalty or params.frequency_penalty:
            samplers.append(
                lib.llama_sampler_init_penalties(n_vocab, n_ctx, 1.0, params.frequency_penalty, params.presence_penalty)
            )
        if params.is_greedy:
            return [*samplers, lib.llama_sampler_init_greedy()]
        samplers.append(lib.llama_sampler_init_temp(params.temperature))
        if params.top_k:
            samplers.append(lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            samplers.append(lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p:
            samplers.append(lib.llama_sampler_init_min_p(params.min_p, 1))
        seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
        return [*samplers, lib.llama_sampler_init_dist(seed)]

    def sample(self, context: "Context", index: int) -> int:
        """Choose a token from the logits of `context`'s batch entry `index`, and take note of it for the next.

        Raises SamplingError when the grammar and logit_bias leave no token at all.
        """
        if self._only_largest:
            return self._largest(context.logits(index))
        if not self._may_run_dry:
            return int(self._lib.llama_sampler_sample(self._chain, context.handle, index))
        array = self._applied(context.logits(index))
        chosen = array.data[array.selected]
        # llama.cpp would choose a forbidden token all the same, and a grammar that has to accept one ends the process.
        _require_allowed(chosen.logit)
        self._lib.llama_sampler_accept(self._chain, chosen.id)
        return int(chosen.id)

    def _largest(self, logits: "NDArray[np.float32]") -> int:
        if self._bias:
            logits = logits.copy()
            for token, bias in self._bias.items():
                logits[token] += bias
        token = int(logits.argmax())
        _require_allowed(logits[token])
        return token

    def apply(self, logits: Sequence[float]) -> dict[int, float]:
        """The tokens that are left for a draw from these logits (n_vocab), with their probabilities."""
        array = self._applied(logits)
        left = [array.data[i] for i in range(array.size)]
        peak = max(token.logit for token in left)
        weights = {int(token.id): math.exp(token.logit - peak) for token in left}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    def _applied(self, logits: "Sequence[float] | NDArray[np.float32]") -> Any:
        """The chain's llama_token_data_array for these logits: what is left, and which was `selected`."""
        import numpy as np

        data = (self._lib.llama_token_data * len(logits))()
        candidates = np.ctypeslib.as_array(data)
        candidates["id"] = np.arange(len(logits))
        candidates["logit"] = logits
        array = self._lib.llama_token_data_array(data, len(logits), -1, False)
        self._lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return array

    def close(self) -> None:
        """Free the chain with its samplers."""
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None


def _require_allowed(logit: float) -> None:
    if logit == -math.inf:
        raise SamplingError(_("No token is left: the grammar and logit_bias forbid all of them here."))


def _grammar(vocab: Any, gbnf: str) -> Any:
    from llama_cpp import llama_cpp

    from weblab_local.llama_log import collect_errors

    with collect_errors() as errors:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
    if not sampler:
        raise SamplingError(
            _("llama.cpp cannot read the grammar: {reason}").format(
                reason=" ".join(errors) or _("it has no rule called root")
            ),
            _("A GBNF grammar has a rule `root ::= ...`."),
        )
    return sampler
