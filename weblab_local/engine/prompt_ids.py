"""Prompts as token ids: text that is tokenized, ids that are looked at, and neither longer than what fits."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

from weblab_local.engine.prompt import too_long
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.template import Template, template_of
from weblab_local.engine.token_budget import TokenBudget
from weblab_local.engine.users import Users
from weblab_local.errors import PromptError, PromptTooLong, SamplingError
from weblab_local.grammar.nodes import read_grammar
from weblab_local.i18n import _
from weblab_local.llama.segmentation import Segmentation

if TYPE_CHECKING:
    from weblab_local.llama.tokenizer import Tokenizer


class PromptIds:
    """Makes ids of what a model is asked. Any thread may call it; `users.close` waits for those that are inside."""

    def __init__(self, tokenizer: "Tokenizer", metadata: Mapping[str, Any], longest: int, *, can_grow: bool) -> None:
        """`longest`: tokens of a prompt and its answer; `can_grow`: the model could be loaded for more."""
        self._tokenizer = tokenizer
        self._metadata = metadata
        self._n_vocab = len(tokenizer.pieces)
        self.longest = longest
        self._can_grow = can_grow
        self.users = Users()

    @cached_property
    def template(self) -> Template:
        """The model's. Raises WeblabError for one that cannot be used."""
        return template_of(self._metadata, self._tokenizer)

    def budget(self, params: SamplingParams, max_tokens: int) -> TokenBudget | None:
        """What brings an answer with a JSON schema to its end within `max_tokens`; None for others.

        Raises SamplingError where not even the shortest one fits.
        """
        gbnf = None if params.json_schema is None else params.gbnf()
        if gbnf is None or not self._segmentation.has_all_bytes:
            return None
        budget = TokenBudget(read_grammar(gbnf), self._segmentation, self._tokenizer.end)
        if max_tokens < budget.n_least:
            raise SamplingError(
                _(
                    "The shortest answer that the JSON schema allows has {n} tokens, and there are {most} for it."
                ).format(n=budget.n_least, most=max_tokens),
                _("Raise max_tokens, shorten the prompt, or allow shorter answers."),
            )
        return budget

    @cached_property
    def _segmentation(self) -> Segmentation:
        return Segmentation(self._tokenizer.pieces)

    def tokenize(self, text: str, limit: int | None = None, *, special: bool = False) -> list[int]:
        """The ids of `text`; with `special`, those of the special tokens in it. Raises PromptTooLong beyond `limit`."""
        with self.users.inside():
            return self._tokenizer.encode(text, limit, special=special)

    def specials_among(self, texts: Sequence[str]) -> frozenset[int]:
        """The ids of those `texts` that are special tokens."""
        specials = self._tokenizer.specials
        return frozenset(specials[text] for text in texts if text in specials)

    def checked(self, ids: Sequence[int]) -> list[int]:
        """`ids` as a list. Raises PromptError where one is no id of the vocabulary."""
        if isinstance(ids, bytes | bytearray):
            raise PromptError(_("A prompt is text or token ids, not bytes."), _("Decode it as UTF-8."))
        checked = list(ids)
        for token in checked:
            if not isinstance(token, Integral) or not 0 <= token < self._n_vocab:
                raise PromptError(
                    _("{token!r} is no token id; the vocabulary has {n_vocab}.").format(
                        token=token, n_vocab=self._n_vocab
                    )
                )
        return list(map(int, checked))

    def of(
        self, prompt: str | Sequence[int], context: str | None = None, *, raw: bool, special: bool = False
    ) -> list[int]:
        """The ids of a prompt: text in the model's template, or as it is with `raw`; or ids, which are always raw.

        With `special`, special tokens in a raw text are ids. In the template nothing but text is written.

        Raises PromptError for a prompt that is empty or cannot be read, PromptTooLong for text that cannot fit.
        """
        if context is not None and (raw or not isinstance(prompt, str)):
            raise PromptError(_("A raw prompt has no template to put a context into."))
        if special and not raw:
            raise PromptError(_("Only a raw prompt can have special tokens."))
        if not isinstance(prompt, str):
            ids = self.checked(prompt)
        else:
            try:
                text = prompt if raw else self.template.prompt(prompt, context)
                has_specials = special if raw else self.template.has_specials
                ids = self.tokenize(text, self.longest, special=has_specials)
            except PromptTooLong:
                raise self.too_long() from None
        if not ids:
            raise PromptError(_("The prompt is empty."), _("A raw prompt needs at least one token."))
        return ids

    def too_long(self, n_tokens: int | None = None) -> PromptTooLong:
        """The error for a prompt of `n_tokens`; None: of more than fit, which nobody counted."""
        return too_long(n_tokens, self.longest, can_grow=self._can_grow)
