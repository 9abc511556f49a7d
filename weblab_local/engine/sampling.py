"""The parameters by which the next token is chosen, checked when they are made.

The card of weblab-10b-instruction-sft samples with temperature 0.7 and top-p 0.95, and transformers adds its default
top-k of 50; these are the defaults here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from weblab_local.errors import SamplingError
from weblab_local.grammar.gbnf import check_grammar
from weblab_local.i18n import _

MAX_SEED = 2**32 - 2
"""llama.cpp takes 2**32 - 1 as "any seed"."""
MAX_TOP_K = 2**31 - 1
MAX_BIAS = 1e6


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
    stop                strings, or special tokens as they are written, that end the answer and are not part of it
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
            check_grammar(self.grammar)
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
        from weblab_local.grammar import json_schema

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
