"""The model's instruction template, in Python and as the chat template that goes into the GGUF.

The single-turn form is the model card's, byte for byte. The form with an input is the one that the card's benchmark
uses (template version 0.3). The card documents no conversations; `CHAT_TEMPLATE` defines them once for everybody who
reads the GGUF: turns follow each other with no end-of-text token between them. A system message stands at the beginning
of the instruction after it, with an empty line between them; before an answer or at the end it is an instruction of
its own. A conversation may begin with an answer, such as a greeting.
"""

from weblab_local.errors import PromptTooLong
from weblab_local.i18n import _

PREAMBLE = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
PREAMBLE_WITH_INPUT = (
    "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
)
INSTRUCTION = "\n\n### 指示:\n"
INPUT = "\n\n### 入力:\n"
RESPONSE = "\n\n### 応答:"


def instruction_prompt(instruction: str, context: str | None = None) -> str:
    """The prompt for one instruction, to be tokenized in one piece and without special tokens.

    `context` is a text to work on; with it the benchmark's template is used, which ends with a newline.
    """
    if context is None:
        return first_turn(instruction)
    return PREAMBLE_WITH_INPUT + INSTRUCTION + instruction + INPUT + context + RESPONSE + "\n"


def first_turn(instruction: str | None, system: str | None = None) -> str:
    """The beginning of a conversation, up to where the model's first answer begins.

    `instruction` None: nobody has asked anything; the model's first words are a greeting.
    """
    parts = [part for part in (system or None, instruction) if part is not None]
    return PREAMBLE + (INSTRUCTION + "\n\n".join(parts) if parts else "") + RESPONSE


def conversation_turn(instruction: str | None) -> str:
    """What follows an answer in a conversation: the next instruction if there is one, up to where its answer begins."""
    return RESPONSE if instruction is None else INSTRUCTION + instruction + RESPONSE


def _jinja_string(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


CHAT_TEMPLATE = (
    "{{- " + _jinja_string(PREAMBLE) + " -}}"
    "{%- set ns = namespace(system='', text='') -%}"
    "{%- for message in messages -%}"
    "{%- set ns.text = '' -%}"
    "{%- if message['content'] is string -%}{%- set ns.text = message['content'] -%}"
    "{%- elif message['content'] -%}"
    "{%- for part in message['content'] -%}{%- set ns.text = ns.text + part['text'] -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'system' or message['role'] == 'developer' -%}"
    "{%- set ns.system = ns.system + ('\\n\\n' if ns.system and ns.text else '') + ns.text -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- " + _jinja_string(INSTRUCTION) + " + ns.system + ('\\n\\n' if ns.system else '') + ns.text -}}"
    "{%- set ns.system = '' -%}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- if ns.system -%}{{- " + _jinja_string(INSTRUCTION) + " + ns.system -}}{%- endif -%}"
    "{%- set ns.system = '' -%}"
    "{{- " + _jinja_string(RESPONSE) + " + ns.text -}}"
    "{%- else -%}"
    "{{- raise_exception('Only the roles system, user and assistant are supported.') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if ns.system -%}{{- " + _jinja_string(INSTRUCTION) + " + ns.system -}}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{- " + _jinja_string(RESPONSE) + " -}}{%- endif -%}"
)
"""Jinja source of the template, for `tokenizer.chat_template` in the GGUF."""


def too_long(n_tokens: int | None, room: int, *, can_grow: bool) -> PromptTooLong:
    """Return the error for a prompt that does not fit a context of `room` tokens, which might be loaded larger.

    `n_tokens` None: more than fit, nobody counted how many.
    """
    if n_tokens is None:
        message = _("The prompt has more than {room} tokens; the context holds so many, the answer included.")
    else:
        message = _("The prompt has {n} tokens; the context holds {room}, the answer included.")
    remedy = _("Shorten it, or load the model with a larger n_ctx.") if can_grow else _("Shorten it.")
    return PromptTooLong(message.format(n=n_tokens, room=room), remedy)
