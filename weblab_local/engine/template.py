"""How a model is asked: in weblab's template, or in the one that its own file carries.

Both give a conversation in pieces of text, between which the answers stand as the ids that the model wrote. A template
of the file's own is Jinja2, rendered as transformers does it. The special tokens that it writes are tokens. Those that
somebody types are text: `Tokenizer.guarded` sees to that.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from weblab_local.engine import prompt as card
from weblab_local.engine.stopping import TURN_STOPS
from weblab_local.errors import PromptError, WeblabError
from weblab_local.i18n import _

if TYPE_CHECKING:
    from weblab_local.llama.tokenizer import Tokenizer

_Message = Mapping[str, str]

TEMPLATE_KEY = "tokenizer.chat_template"

ASKED, ANSWERED = "\ufdd1", "\ufdd2"
"""Noncharacters that stand for an instruction and an answer, to find what a template writes around them."""


class Template(Protocol):
    """A model's template.

    stops            strings that end an answer: the model begins the next turn by itself
    stop_ids         special tokens that end it
    has_specials     whether the texts hold special tokens
    open_end         what follows an instruction, which is there only when the instruction is whole
    """

    stops: Sequence[str]
    stop_ids: Collection[int]
    has_specials: bool
    open_end: str

    def first_turn(self, instruction: str | None, system: str | None = None) -> str:
        """The beginning of a conversation, up to where the model's first answer begins."""

    def next_turn(self, instruction: str | None) -> str:
        """What follows an answer, up to where the next one begins."""

    def prompt(self, instruction: str, context: str | None) -> str:
        """One instruction, with a text to work on or without."""

    def joined(self, role: str, texts: Sequence[str], /) -> str:
        """Messages of one role that follow each other, as one."""


class WeblabTemplate:
    """The model card's."""

    stops: Sequence[str] = TURN_STOPS
    stop_ids: Collection[int] = ()
    has_specials = False
    open_end = card.RESPONSE

    def first_turn(self, instruction: str | None, system: str | None = None) -> str:
        """See `prompt.first_turn`."""
        return card.first_turn(instruction, system)

    def next_turn(self, instruction: str | None) -> str:
        """See `prompt.conversation_turn`."""
        return card.conversation_turn(instruction)

    def prompt(self, instruction: str, context: str | None) -> str:
        """See `prompt.instruction_prompt`."""
        return card.instruction_prompt(instruction, context)

    def joined(self, role: str, texts: Sequence[str], /) -> str:
        """As the chat template in the GGUF does it."""
        return (card.RESPONSE if role == "assistant" else card.INSTRUCTION).join(texts)


class OwnTemplate:
    """The one in the model's file."""

    has_specials = True

    def __init__(self, source: str, tokenizer: "Tokenizer", metadata: Mapping[str, Any]) -> None:
        """Compile the template and look how it writes turns. Raises WeblabError for one that cannot be used."""
        self._guarded = tokenizer.guarded
        names = {token: text for text, token in tokenizer.specials.items()}
        tokens = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")}
        self._tokens = {f"{kind}_token": names[token] for kind, token in tokens.items() if token in names}
        try:
            self._template = _environment().from_string(source)
            self._takes_system = self._can_have([_system(ASKED), _user("a")])
            _before, self.open_end = self._rendered([_user(ASKED)]).split(ASKED)
            between, _after = self._after_answer(ASKED).split(ASKED)
        except _failures(PromptError) as error:
            raise WeblabError(
                _("The model's own chat template cannot be used: {error}").format(error=error),
                _("Convert the model again with --chat-template weblab, or give raw prompts."),
            ) from None
        self.stops, self.stop_ids = _ends(between, tokenizer)

    def first_turn(self, instruction: str | None, system: str | None = None) -> str:
        """The rendered conversation so far. A system message that it does not take stands before the instruction."""
        if system and not self._takes_system:
            instruction, system = "\n\n".join(filter(None, [system, instruction])), None
        messages = [_system(system)] if system else []
        return self._rendered(messages if instruction is None else [*messages, _user(instruction)])

    def next_turn(self, instruction: str | None) -> str:
        """What it writes between an answer and the one to the next instruction."""
        if instruction is None:
            raise PromptError(_("The model's own chat template has no answer without an instruction."))
        return self._after_answer(instruction)

    def prompt(self, instruction: str, context: str | None) -> str:
        """The context, for which it has no place, stands behind the instruction."""
        return self.first_turn(instruction if context is None else f"{instruction}\n\n{context}")

    def joined(self, _role: str, texts: Sequence[str], /) -> str:
        """With an empty line between them: many templates refuse two messages of one role."""
        return "\n\n".join(texts)

    def _after_answer(self, instruction: str) -> str:
        answered = {"role": "assistant", "content": ANSWERED}
        return self._rendered([_user("a"), answered, _user(instruction)]).split(ANSWERED, 1)[1]

    def _can_have(self, messages: Sequence[_Message]) -> bool:
        try:
            return ASKED in self._rendered(messages)
        except PromptError:
            return False

    def _rendered(self, messages: Sequence[_Message]) -> str:
        shown = [{**message, "content": self._guarded(message["content"])} for message in messages]
        try:
            return str(self._template.render(messages=shown, add_generation_prompt=True, **self._tokens))
        except _failures() as error:
            raise PromptError(_("The model's own chat template refuses it: {error}").format(error=error)) from None


def template_of(metadata: Mapping[str, Any], tokenizer: "Tokenizer") -> Template:
    """The template of a model, by its file. A file without one has weblab's, as base models do.

    Raises WeblabError for one that cannot be used.
    """
    source = str(metadata.get(TEMPLATE_KEY, ""))
    return WeblabTemplate() if not source or card.PREAMBLE in source else OwnTemplate(source, tokenizer, metadata)


def _user(text: str) -> _Message:
    return {"role": "user", "content": text}


def _system(text: str) -> _Message:
    return {"role": "system", "content": text}


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What a template raises: its own errors, and Python's for what it does with messages."""
    from jinja2 import TemplateError

    python = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
    return (TemplateError, *python, *more)


def _environment() -> Any:
    """Jinja2 as transformers sets it up for chat templates (utils/chat_template_utils.py)."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _ends(between: str, tokenizer: "Tokenizer") -> tuple[Sequence[str], Collection[int]]:
    """What ends an answer, by what stands between it and the next instruction: a special token, or a heading."""
    heading, token = tokenizer.up_to_special(between)
    if token is not None and not heading.strip():
        return (), frozenset([token])
    heading, is_on_new_line = heading.strip(), "\n" in heading[: len(heading) - len(heading.lstrip())]
    if not heading:
        return (), frozenset()
    return ("\n\n" + heading, "\n" + heading) if is_on_new_line else (heading,), frozenset()
