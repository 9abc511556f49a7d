"""A request's messages as a conversation, the ids included that the model wrote."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby

from weblab_local.chat import ChatSession, Turn
from weblab_local.engine import Engine
from weblab_local.errors import PromptTooLong
from weblab_local.generation import Completion
from weblab_local.i18n import _
from weblab_local.prompt import INSTRUCTION, RESPONSE
from weblab_local.server.errors import ApiError
from weblab_local.server.requests import DEFAULT_MAX_TOKENS, Message

REMEMBERED = 1024
"""Answers whose ids are kept."""

LEAST_ROOM = 16
"""Tokens that there has to be room for at least, if the answer may have so many."""


class AnswerMemory:
    """The ids of answers that were given here, by instruction and text.

    A client sends the conversation back as text. Tokenized again it may have other ids than the model chose: the model
    would not read what it wrote, and the KV cache would not fit. An answer that is not from here is tokenized.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[str, str], Sequence[int]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, instruction: str, answer: str, ids: Sequence[int]) -> None:
        """Remember the ids of an answer; the oldest one goes when there are too many."""
        with self._lock:
            self._ids[instruction, answer] = ids
            self._ids.move_to_end((instruction, answer))
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)

    def find(self, instruction: str, answer: str) -> Sequence[int] | None:
        """Its ids, None if it is not from here."""
        with self._lock:
            return self._ids.get((instruction, answer))


class Conversation:
    """What a chat request asks: the ids to read, and what became of its messages.

    Messages of one role that follow each other become one, joined as the chat template joins them.
    """

    def __init__(
        self, messages: Sequence[Message], max_tokens: int | None, engine: Engine, memory: AnswerMemory
    ) -> None:
        """Raises ApiError for messages that are no conversation, PromptTooLong where the last does not fit."""
        self._memory = memory
        system, talk = _split(messages)
        texts = [(role, _SEPARATORS[role].join(m.text for m in group)) for role, group in groupby(talk, _role)]
        turns = [
            Turn(instruction, answer, memory.find(instruction, answer) or engine.tokenize(answer))
            for (_user, instruction), (_assistant, answer) in zip(texts[:-1:2], texts[1::2], strict=True)
        ]
        self.instruction = texts[-1][1]
        self._session = ChatSession(engine, system, turns=turns)
        self.max_tokens = max_tokens or DEFAULT_MAX_TOKENS
        self.ids, dropped = self._session.fit(self.instruction, self._reserve())
        n_dropped_turns = 2 * len(dropped)
        kept_texts = len(texts) - n_dropped_turns
        self.dropped_messages = len(talk) - _n_messages(talk, kept_texts)
        """The oldest messages that were left out, the system message not counted."""

    def _reserve(self) -> int:
        """Tokens to keep free for the answer: what is asked for, but no more than half of the context for that.

        Clients ask for thousands as a matter of course; the conversation would be gone. Raises PromptTooLong.
        """
        engine = self._session.engine
        context = engine.longest_sequence
        alone = len(ChatSession(engine, self._session.system).prompt_ids(self.instruction))
        room = context - alone
        least = min(self.max_tokens, LEAST_ROOM)
        if room < least:
            raise PromptTooLong(
                _(
                    "The last message and the system message have {n} tokens with the template; "
                    "the context holds {context}."
                ).format(n=alone, context=context),
                _("Shorten it."),
            )
        return min(self.max_tokens, context // 2, room)

    def remember(self, answer: Completion) -> None:
        """Keep the ids of an answer, for the requests that send it back."""
        self._memory.keep(self.instruction, answer.text, tuple(self._session.answer_ids(answer)))


_SEPARATORS = {"user": INSTRUCTION, "assistant": RESPONSE}


def _role(message: Message) -> str:
    return message.role


def _split(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The system message, and the rest: the user begins it and ends it."""
    is_system = [message.role in ("system", "developer") for message in messages]
    if any(is_system[1:]):
        position = 1 + is_system[1:].index(True)
        raise ApiError(
            400,
            _("Only the first message can be a system message."),
            code="invalid_value",
            param=f"messages.{position}.role",
        )
    system = messages[0].text if is_system[0] else None
    talk = messages[1:] if is_system[0] else messages
    if not talk or talk[0].role != "user" or talk[-1].role != "user":
        raise ApiError(
            400,
            _("The first message after the system message and the last message have to be the user's."),
            code="invalid_value",
            param="messages",
        )
    if not talk[-1].text:
        raise ApiError(400, _("The last message is empty."), code="invalid_value", param="messages")
    return system, talk


def _n_messages(talk: Sequence[Message], n_groups: int) -> int:
    """How many messages the last `n_groups` runs of one role have."""
    groups = [len(list(group)) for _, group in groupby(talk, _role)]
    return sum(groups[len(groups) - n_groups :])
