"""A request's messages as one prompt, in which the model's own answers keep the ids they were generated with."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, takewhile

from weblab_local.chat.session import ChatSession, Turn
from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import Completion
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.template import Template
from weblab_local.errors import PromptTooLong
from weblab_local.i18n import _
from weblab_local.server.errors import ApiError
from weblab_local.server.messages import ChatMessage

REMEMBERED = 1024
"""Answers whose ids are kept."""

USUAL_ROOM = 512
"""Tokens kept free for an answer that may be as long as the context."""


class GeneratedIds:
    """The ids of the answers that this server generated, by instruction and text.

    A client sends the conversation back as text. Tokenized again it may have other ids than the model chose: the model
    would not read what it wrote, and the KV cache would not fit. An answer from elsewhere is tokenized.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[str | None, str], Sequence[int]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, instruction: str | None, answer: str, ids: Sequence[int]) -> None:
        """Remember the ids of an answer; the oldest one goes when there are too many."""
        with self._lock:
            self._ids[instruction, answer] = ids
            self._ids.move_to_end((instruction, answer))
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)

    def find(self, instruction: str | None, answer: str) -> Sequence[int] | None:
        """Return the ids of an answer, None if this server did not generate it."""
        with self._lock:
            return self._ids.get((instruction, answer))


class Conversation:
    """The prompt of a chat request as ids, and how many of its messages had to be dropped.

    Messages are joined as the chat template joins them: those of one role that follow each other become one, a system
    message stands at the beginning of the instruction after it. An assistant's last message is gone on with.
    """

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        max_tokens: int | None,
        engine: Engine,
        generated_ids: GeneratedIds,
        *,
        continue_final_message: bool | None = None,
    ) -> None:
        """`max_tokens` None: to the end of the context. Raises PromptTooLong where the last message does not fit,
        ApiError where an answer is to be gone on with and there is none.
        """
        self._generated_ids = generated_ids
        system, parts = _parts(messages, engine.template)
        pairs = _pairs(parts)
        is_answer = bool(parts) and parts[-1].role == "assistant"
        if continue_final_message and not is_answer:
            raise ApiError(
                400,
                _("There is no message of the assistant at the end to go on with."),
                code="invalid_value",
                param="continue_final_message",
            )
        asked, begun = (parts[-1] if parts and not is_answer else _NOTHING), _NOTHING
        if is_answer and continue_final_message is not False:
            asked, begun = pairs.pop()
        self.instruction = asked.text
        self._begun = begun.text or ""
        (open_turn,) = self._turns([(asked, begun)], engine)
        self._begun_ids = open_turn.answer_ids
        room = max_tokens or USUAL_ROOM
        self._session = ChatSession(engine, system, SamplingParams(max_tokens=room), self._turns(pairs, engine))
        self.max_tokens = max_tokens or engine.longest_sequence
        self.prompt_ids, dropped = self._session.fit(self.instruction, room, self._begun_ids)
        self.dropped_messages = sum(instruction.n + answer.n for instruction, answer in pairs[: len(dropped)])
        """How many of the oldest messages were left out, system messages at the beginning not counted."""

    def _turns(self, pairs: Sequence[tuple["_Part", "_Part"]], engine: Engine) -> Sequence[Turn]:
        """The turns of pairs of an instruction and its answer.

        What is too old to fit beside the newer ones is not tokenized. Its turn has more ids, of no meaning, than any
        context has room for: it will be dropped.
        """
        room = engine.longest_sequence
        never_fits = range(room + 1)
        turns: list[Turn] = []
        for asked, answered in reversed(pairs):
            instruction, answer = asked.text, answered.text or ""
            ids: Sequence[int] = never_fits
            if room >= 0:
                with suppress(PromptTooLong):
                    ids = self._generated_ids.find(instruction, answer) or engine.tokenize(answer, room)
            room -= len(ids)
            turns.append(Turn(instruction, answer, ids))
        return turns[::-1]

    def read_ahead(self, *, finished: bool) -> None:
        """Let the engine read it, unless an answer is to be gone on with; see `ChatSession.read_ahead`."""
        if self.instruction is not None and not self._begun_ids:
            self._session.read_ahead(self.instruction, finished=finished)

    def remember(self, completion: Completion) -> None:
        """Keep the ids of an answer, for the requests that send it back."""
        ids = (*self._begun_ids, *self._session.answer_ids(completion))
        self._generated_ids.keep(self.instruction, self._begun + completion.text, ids)


@dataclass(frozen=True)
class _Part:
    """Messages that the prompt has as one: an instruction or an answer. `n` is how many they were."""

    role: str
    text: str | None
    n: int


_NOTHING = _Part("", None, 0)
"""What is asked before a greeting."""


def _parts(messages: Sequence[ChatMessage], template: Template) -> tuple[str | None, Sequence[_Part]]:
    """The system message at the beginning, and the rest as instructions and answers by turns."""
    first = list(takewhile(lambda message: message.is_system, messages))
    single: list[_Part] = []
    waiting: list[ChatMessage] = []
    for message in messages[len(first) :]:
        if message.is_system:
            waiting.append(message)
            continue
        if message.role == "user":
            single.append(_Part("user", _joined([*_texts(waiting), message.text]), len(waiting) + 1))
        else:
            single += [*_alone(waiting), _Part("assistant", message.text, 1)]
        waiting = []
    single += _alone(waiting)
    parts = [
        _Part(role, template.joined(role, [one.text or "" for one in group]), sum(one.n for one in group))
        for role, group in ((role, list(group)) for role, group in groupby(single, lambda part: part.role))
    ]
    return _joined(_texts(first)) or None, parts


def _alone(waiting: Sequence[ChatMessage]) -> Sequence[_Part]:
    """System messages that no instruction follows, as an instruction of their own; empty ones are nothing."""
    texts = _texts(waiting)
    return [_Part("user", _joined(texts), len(waiting))] if texts else []


def _texts(messages: Sequence[ChatMessage]) -> list[str]:
    return [message.text for message in messages if message.text]


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(texts)


def _pairs(parts: Sequence[_Part]) -> list[tuple[_Part, _Part]]:
    """Instructions with their answers; one at the end that has none yet is left out."""
    whole = [_NOTHING, *parts] if parts and parts[0].role == "assistant" else list(parts)
    return list(zip(whole[::2], whole[1::2], strict=False))
