"""A request's messages as one prompt, in which the model's own answers keep the ids they were generated with."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby

from weblab_local.chat.session import ChatSession, Turn
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Completion
from weblab_local.engine.prompt import INSTRUCTION, RESPONSE
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import PromptTooLong
from weblab_local.i18n import _
from weblab_local.server.errors import ApiError
from weblab_local.server.request_bodies import DEFAULT_MAX_TOKENS, ChatMessage

REMEMBERED = 1024
"""Answers whose ids are kept."""


class GeneratedIds:
    """The ids of the answers that this server generated, by instruction and text.

    A client sends the conversation back as text. Tokenized again it may have other ids than the model chose: the model
    would not read what it wrote, and the KV cache would not fit. An answer from elsewhere is tokenized.
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
        """Return the ids of an answer, None if this server did not generate it."""
        with self._lock:
            return self._ids.get((instruction, answer))


class Conversation:
    """The prompt of a chat request as ids, and how many of its messages had to be dropped.

    Messages of one role that follow each other become one, joined as the chat template joins them.
    """

    def __init__(
        self, messages: Sequence[ChatMessage], max_tokens: int | None, engine: Engine, generated_ids: GeneratedIds
    ) -> None:
        """Raises ApiError for messages that are no conversation, PromptTooLong where the last does not fit."""
        self._generated_ids = generated_ids
        system, talk = _split(messages)
        texts = [(role, _SEPARATORS[role].join(m.text for m in group)) for role, group in groupby(talk, _role)]
        pairs = zip(texts[:-1:2], texts[1::2], strict=True)
        self.instruction = texts[-1][1]
        turns = self._turns([(instruction, answer) for (_user, instruction), (_assistant, answer) in pairs], engine)
        self.max_tokens = max_tokens or DEFAULT_MAX_TOKENS
        self._session = ChatSession(engine, system, SamplingParams(max_tokens=self.max_tokens), turns)
        self.prompt_ids, dropped = self._session.fit(self.instruction, self.max_tokens)
        n_dropped_turns = 2 * len(dropped)
        kept_texts = len(texts) - n_dropped_turns
        self.dropped_messages = len(talk) - _n_messages(talk, kept_texts)
        """How many of the oldest messages were left out, the system message not counted."""

    def _turns(self, pairs: Sequence[tuple[str, str]], engine: Engine) -> Sequence[Turn]:
        """The turns of pairs of an instruction and its answer.

        What is too old to fit beside the newer ones is not tokenized. Its turn has more ids, of no meaning, than any
        context has room for: it will be dropped.
        """
        room = engine.longest_sequence
        never_fits = range(room + 1)
        turns: list[Turn] = []
        for instruction, answer in reversed(pairs):
            ids: Sequence[int] = never_fits
            if room >= 0:
                with suppress(PromptTooLong):
                    ids = self._generated_ids.find(instruction, answer) or engine.tokenize(answer, room)
            room -= len(ids)
            turns.append(Turn(instruction, answer, ids))
        return turns[::-1]

    def read_ahead(self, *, finished: bool) -> None:
        """Let the engine read it; see `ChatSession.read_ahead`."""
        self._session.read_ahead(self.instruction, finished=finished)

    def remember(self, completion: Completion) -> None:
        """Keep the ids of an answer, for the requests that send it back."""
        self._generated_ids.keep(self.instruction, completion.text, tuple(self._session.answer_ids(completion)))


_SEPARATORS = {"user": INSTRUCTION, "assistant": RESPONSE}


def _role(message: ChatMessage) -> str:
    return message.role


def _split(messages: Sequence[ChatMessage]) -> tuple[str | None, Sequence[ChatMessage]]:
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


def _n_messages(talk: Sequence[ChatMessage], n_groups: int) -> int:
    """Count the messages in the last `n_groups` groups of consecutive messages of one role."""
    groups = [len(list(group)) for _, group in groupby(talk, _role)]
    return sum(groups[len(groups) - n_groups :])
