"""A conversation: its turns, and the budget of tokens they have to fit.

A turn keeps the user's text and, as ids, what the model wrote: that is never tokenized again. When the conversation
outgrows the context, whole turns are dropped from its beginning, down to half of the context at once, since every drop
means reading the rest again. The preamble with the system message and the newest instruction are never dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from weblab_local.engine.generation import READ_IT_HERE, Chunk, Completion, Generation, Stats, complete
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.uncopyable import Uncopyable
from weblab_local.errors import ForkedError, PromptError, PromptTooLong, WeblabError
from weblab_local.i18n import _, n_
from weblab_local.llama.tokenizer import TextStream

if TYPE_CHECKING:
    from weblab_local.engine.engine import Engine
    from weblab_local.engine.options import PromptProgress

SAVED_FORMAT = 1

OPEN_TOKENS = 3
"""At the end of what is being typed, tokens that the next letters may still change."""

LEAST_ROOM = 16
"""Tokens that there has to be room for at least, if the answer may have so many."""


@dataclass(frozen=True)
class Turn:
    """An instruction, the answer's text, and the answer as the model wrote it.

    Without an instruction, as in a conversation that begins with a greeting, it is None.
    """

    instruction: str | None
    answer: str
    answer_ids: Sequence[int]


@dataclass(frozen=True)
class Reply(Completion):
    """An answer in a conversation. `dropped`: the turns that were left out from now on to make room."""

    dropped: Sequence[Turn] = field(default=(), repr=False)


class ReplyStream(Uncopyable, Iterator[Chunk]):
    """A running answer in a conversation. The turn is taken down at its end, also when it is closed before."""

    _instead = READ_IT_HERE

    def __init__(self, session: "ChatSession", instruction: str, generation: Generation, dropped: Sequence[Turn]):
        self.dropped = dropped
        self._session = session
        self._instruction = instruction
        self._generation = generation
        self._chunks: list[Chunk] = []

    def __next__(self) -> Chunk:
        chunk = next(self._generation)
        self._chunks.append(chunk)
        if chunk.finish_reason is not None:
            self._session._take_down(self._instruction, complete(self._chunks), len(self.dropped))
        return chunk

    def cancel(self) -> None:
        """End the answer soon; what there is of it stays in the conversation."""
        self._generation.cancel()

    def close(self) -> None:
        """Cancel, and wait for the end, which is soon."""
        self.cancel()
        with suppress(ForkedError):  # the end comes in the parent process, and is taken down there
            for _chunk in self:
                pass

    @property
    def reply(self) -> Reply:
        """The whole answer, once the stream has ended."""
        done = complete(self._chunks)
        return Reply(**{f.name: getattr(done, f.name) for f in fields(Completion)}, dropped=self.dropped)

    def __enter__(self) -> "ReplyStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ChatSession(Uncopyable):
    """A conversation with a model. Several may share one engine; one is used by one thread at a time."""

    _instead = n_("Copy the conversation alone: ChatSession.from_dict(engine, chat.to_dict()).")

    def __init__(
        self,
        engine: "Engine",
        system: str | None = None,
        params: SamplingParams | None = None,
        turns: Sequence[Turn] = (),
    ) -> None:
        """`system` stands before the first instruction; `params` are the default for answers; `turns` came before.

        Raises PromptError for a `system` that cannot be tokenized.
        """
        self.engine = engine
        self.params = params or SamplingParams()
        self.system = system
        self._turns = list(turns)
        self.last_stats: Stats | None = None

    @property
    def turns(self) -> Sequence[Turn]:
        """The turns that are still part of the conversation, oldest first."""
        return tuple(self._turns)

    @property
    def system(self) -> str | None:
        """The system message; setting it changes the conversation from its beginning on.

        Raises PromptError for what cannot be tokenized.
        """
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text:
            self._n_tokens(text, 0)  # what cannot be read is refused before it is part of every prompt
        self._system = text or None

    @property
    def tokens_used(self) -> int:
        """Tokens of the context that the conversation takes, the preamble included."""
        return len(self.prompt_ids())

    def prompt_ids(self, instruction: str | None = None) -> list[int]:
        """The conversation as ids, as the model reads it, with a new `instruction` at its end if one is given."""
        return self._ids(self._turns, *(() if instruction is None else (instruction,)))

    def _ids(self, turns: Sequence[Turn], *asked: str | None) -> list[int]:
        template = self.engine.template
        instructions = [*(turn.instruction for turn in turns), *asked]
        ids: list[int] = []
        for position, text in enumerate(instructions):
            ids += self._tokenize(template.next_turn(text) if position else template.first_turn(text, self._system))
            if position < len(turns):
                ids += turns[position].answer_ids
        return ids

    def send(
        self,
        instruction: str,
        params: SamplingParams | None = None,
        *,
        on_progress: "PromptProgress | None" = None,
    ) -> Reply:
        """Answer an instruction with the conversation in mind. Raises PromptTooLong when it does not fit at all."""
        with self.stream(instruction, params, on_progress=on_progress) as stream:
            for _chunk in stream:
                pass
            return stream.reply

    def stream(
        self,
        instruction: str,
        params: SamplingParams | None = None,
        *,
        on_progress: "PromptProgress | None" = None,
    ) -> ReplyStream:
        """The same, chunk by chunk."""
        if not instruction:
            raise PromptError(_("The instruction is empty."))
        params = params or self.params
        ids, dropped = self.fit(instruction, params.max_tokens)
        generation = self.engine.stream(ids, params, on_progress=on_progress)
        return ReplyStream(self, instruction, generation, dropped)

    def fit(
        self, instruction: str | None, max_tokens: int, begun: Sequence[int] = ()
    ) -> tuple[list[int], Sequence[Turn]]:
        """The ids that ask `instruction` and leave room for the answer, and the turns left out of them.

        `begun` are ids that the answer begins with; without an instruction the model begins, or goes on, by itself.

        Room for `max_tokens` is kept free, but no more than half of the context: callers ask for hundreds or thousands
        as a matter of course, and nothing would be left of the conversation. An answer may be longer where there is
        more room.

        Raises PromptTooLong where even the instruction alone leaves no room for a short answer. Changes nothing.
        """
        context = self.engine.longest_sequence
        alone = self._n_tokens(self.engine.template.first_turn(instruction, self._system), context)
        if context - alone - len(begun) < min(max_tokens, LEAST_ROOM):
            if begun:
                message = _("The last messages and the system message do not fit the context of {context} tokens.")
            elif alone > context:
                message = _(
                    "The instruction and the system message have more than the {context} tokens of the context."
                )
            else:
                message = _(
                    "The instruction and the system message have {n} tokens with the template; "
                    "the context holds {context}."
                )
            raise PromptTooLong(message.format(n=alone, context=context), _("Shorten it."))
        n_dropped = self._n_to_drop(instruction, context - min(max_tokens, context // 2) - len(begun))
        if n_dropped:
            n_dropped = self._n_to_drop(instruction, context // 2 - len(begun))
        return [*self._ids(self._turns[n_dropped:], instruction), *begun], tuple(self._turns[:n_dropped])

    def read_ahead(self, text: str = "", *, finished: bool = False) -> None:
        """Let the engine compute the conversation, and of its next instruction what is typed so far; return at once.

        The last tokens are left out, which the next letter may change, unless the instruction is probably `finished`:
        then all is computed that the answer begins with. See `Engine.read_ahead`. What is no instruction is let be.
        """
        with suppress(PromptError):
            ids, _dropped = self.fit(text or "\n", self.params.max_tokens)
            n_open = 0 if finished else len(self._tokenize(self.engine.template.open_end)) + OPEN_TOKENS
            self.engine.read_ahead(ids[: len(ids) - n_open])

    def _n_to_drop(self, instruction: str | None, target: int) -> int:
        """How many of the oldest turns have to go for the rest to have at most `target` tokens, if that can be."""
        if target <= 0 or not self._turns:
            return len(self._turns)
        template = self.engine.template
        kept = self._n_tokens(template.next_turn(instruction), target)
        for n_dropped in range(len(self._turns) - 1, -1, -1):
            turn = self._turns[n_dropped]
            kept += len(turn.answer_ids)
            if kept + self._n_tokens(template.first_turn(turn.instruction, self._system), target) > target:
                return n_dropped + 1
            if n_dropped:
                kept += self._n_tokens(template.next_turn(turn.instruction), target)
        return 0

    def _n_tokens(self, text: str, limit: int) -> int:
        """How many tokens `text` has; `limit` + 1 where it has more than `limit`, which nobody counts then."""
        try:
            return min(len(self._tokenize(text, limit)), limit + 1)
        except PromptTooLong:
            return limit + 1

    def _tokenize(self, text: str, limit: int | None = None) -> list[int]:
        """The ids of what the template has written."""
        return self.engine.tokenize(text, limit, special=self.engine.template.has_specials)

    def _take_down(self, instruction: str, completion: Completion, n_dropped: int) -> None:
        self.last_stats = completion.stats
        ids = self.answer_ids(completion)
        self._turns[:] = [*self._turns[n_dropped:], Turn(instruction, completion.text, tuple(ids))]

    def answer_ids(self, completion: Completion) -> Sequence[int]:
        """The ids of an answer's text alone, as the model wrote it.

        A stop string's are cut off, and a token that was half of one is written anew.
        """
        if completion.finish_reason != "stop":
            return completion.token_ids
        text = completion.text
        decoded = TextStream()
        length = n_kept = n_whole = 0
        for n_ids, token in enumerate(completion.token_ids, 1):
            length += len(decoded.push(self.engine.piece(token)))
            if length > len(text):
                rest = text[n_whole:]
                return (*completion.token_ids[:n_kept], *(self.engine.tokenize(rest) if rest else ()))
            if decoded.ends_whole:
                n_kept, n_whole = n_ids, length
        return completion.token_ids

    def regenerate(
        self, params: SamplingParams | None = None, *, on_progress: "PromptProgress | None" = None
    ) -> ReplyStream:
        """Answer the last instruction once more; the old answer is gone when the new one begins."""
        instruction = self.undo()
        try:
            return self.stream(instruction, params, on_progress=on_progress)
        except BaseException:
            self._turns.append(self._undone)
            raise

    def undo(self) -> str:
        """Take the last turn back; its instruction. Raises PromptError when there is none."""
        instruction = self._turns[-1].instruction if self._turns else None
        if instruction is None:
            raise PromptError(_("The conversation has no turn yet."))
        self._undone = self._turns.pop()
        return instruction

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns.clear()

    def to_dict(self) -> dict[str, Any]:
        """The conversation as JSON can hold it."""
        return {
            "format": SAVED_FORMAT,
            "system": self._system,
            "turns": [
                {"instruction": turn.instruction, "answer": turn.answer, "answer_ids": list(turn.answer_ids)}
                for turn in self._turns
            ],
        }

    @classmethod
    def from_dict(
        cls, engine: "Engine", saved: Mapping[str, Any], params: SamplingParams | None = None
    ) -> "ChatSession":
        """What `to_dict` gave, for the same model. Raises WeblabError when it is no such dictionary."""
        try:
            if saved["format"] != SAVED_FORMAT:
                raise WeblabError(
                    _("The conversation has the format {found!r}, not {ours}.").format(
                        found=saved["format"], ours=SAVED_FORMAT
                    )
                )
            session = cls(engine, _text(saved["system"]) if saved["system"] is not None else None, params)
            for turn in saved["turns"]:
                ids = tuple(engine.check_ids(turn["answer_ids"]))
                session._turns.append(Turn(_text(turn["instruction"]), _text(turn["answer"]), ids))
        except (KeyError, TypeError) as error:
            raise WeblabError(_("This is no saved conversation: {error!r}.").format(error=error)) from None
        return session


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} should be a text")
    return value
