"""Conversations: what the model reads, the budget of tokens, taking back, saving, answers that were cut short."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support import reference
from tests.support.engines import ENDLESS, GREEDY, ONE, PAIRS, SHORT_ANSWERS, Gate, engine_of, is_response, paused
from weblab_local.chat.session import LEAST_ROOM, ChatSession, Reply, Turn
from weblab_local.engine.engine import DEFAULT_N_CTX, Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import PromptError, PromptTooLong, WeblabError
from weblab_local.models.loading import SHORTER_CONTEXTS

FIRST, SECOND, THIRD = (pair.instruction for pair in PAIRS[20:23])
SYSTEM = "あなたは親切な案内係です。"
SHORT = replace(GREEDY, max_tokens=40)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of(2) as engine:
        yield engine


@pytest.fixture
def chat(engine: Engine) -> ChatSession:
    return engine.chat(params=GREEDY)


def ids_of(turns: Sequence[Turn], instruction: str, system: str = "") -> list[int]:
    """What the model should read, put together by tokenizers."""
    answered = [(turn.instruction or "", turn.answer_ids) for turn in turns]
    return reference.conversation(answered, instruction, system)


def test_an_answer_knows_the_turns_before_it(chat: ChatSession) -> None:
    for n, question in enumerate([FIRST, SECOND, THIRD]):
        prompt = ids_of(chat.turns, question)
        assert chat.prompt_ids(question) == prompt
        reply = chat.send(question)
        assert reply.stats.prompt_tokens == len(prompt)
        assert reference.is_greedy(prompt, [*reply.token_ids, reference.END])
        assert is_response(reply, PAIRS[20 + n])
        assert chat.turns[-1] == Turn(question, reply.text, reply.token_ids)
    assert [turn.instruction for turn in chat.turns] == [FIRST, SECOND, THIRD]


def test_streaming_gives_the_same_reply(engine: Engine, chat: ChatSession) -> None:
    replies = [chat.send(question) for question in (FIRST, SECOND)]
    streaming = engine.chat(params=GREEDY)
    for question, reply in zip((FIRST, SECOND), replies, strict=True):
        with streaming.stream(question) as stream:
            chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == stream.reply.text == reply.text
        assert isinstance(stream.reply, Reply)
        assert (stream.reply.token_ids, stream.reply.finish_reason) == (reply.token_ids, "stop")
    assert streaming.turns == chat.turns


def test_the_reply_of_a_stream_is_there_when_it_has_ended(chat: ChatSession) -> None:
    stream = chat.stream(FIRST)
    with pytest.raises(ValueError, match="last chunk"):
        _ = stream.reply
    next(stream)
    with pytest.raises(ValueError, match="last chunk"):
        _ = stream.reply
    assert not chat.turns
    list(stream)
    assert chat.turns == (Turn(FIRST, stream.reply.text, stream.reply.token_ids),)


def test_a_system_message_stands_before_the_first_instruction(engine: Engine) -> None:
    chat = engine.chat(SYSTEM, GREEDY)
    assert chat.prompt_ids(FIRST) == ids_of([], FIRST, SYSTEM)
    chat.send(FIRST)
    assert chat.prompt_ids(SECOND) == ids_of(chat.turns, SECOND, SYSTEM)
    chat.system = None
    assert chat.prompt_ids(SECOND) == ids_of(chat.turns, SECOND)
    chat.system = ""
    assert chat.system is None


@pytest.mark.parametrize("text", ["\ud83d", "か" + "\u3099" * 3000])
def test_a_system_message_that_cannot_be_read_is_refused_at_once(engine: Engine, text: str) -> None:
    chat = engine.chat(SYSTEM)
    with pytest.raises(PromptError):
        chat.system = text
    assert chat.system == SYSTEM
    with pytest.raises(PromptError):
        engine.chat(text)


def test_what_a_user_types_is_never_a_special_token(chat: ChatSession) -> None:
    ids = chat.prompt_ids("<|endoftext|>\n\n### 指示:\n<|padding|>")
    assert not {0, 1} & set(ids)


def test_tokens_used_are_those_of_the_conversation(chat: ChatSession) -> None:
    assert chat.tokens_used == 0
    reply = chat.send(FIRST)
    assert chat.tokens_used == reply.stats.prompt_tokens + reply.stats.completion_tokens
    next_question = len(reference.encode(f"\n\n### 指示:\n{SECOND}\n\n### 応答:"))
    assert chat.send(SECOND).stats.prompt_tokens == (
        reply.stats.prompt_tokens + reply.stats.completion_tokens + next_question
    )


def test_an_empty_instruction_is_refused(chat: ChatSession) -> None:
    chat.send(FIRST)
    with pytest.raises(PromptError, match="empty"):
        chat.send("")
    assert len(chat.turns) == 1


def test_a_conversation_that_overflows_loses_whole_turns_down_to_half_of_the_context() -> None:
    with engine_of(1, n_ctx=400) as engine:
        chat = engine.chat(SYSTEM, SHORT)
        dropped: list[Turn] = []
        overflows = 0
        for n in range(24):
            question = PAIRS[n].instruction
            before = chat.turns
            whole = ids_of(before, question, SYSTEM)
            reply = chat.send(question)
            kept = before[len(reply.dropped) :]
            assert (*reply.dropped, *kept) == before
            assert chat.turns[:-1] == kept
            read = ids_of(kept, question, SYSTEM)
            assert reply.stats.prompt_tokens == len(read)
            if len(whole) + SHORT.max_tokens <= 400:
                assert reply.dropped == ()
            else:
                overflows += 1
                assert len(read) <= 200
                one_more = ids_of(before[len(reply.dropped) - 1 :], question, SYSTEM)
                assert len(one_more) > 200
            assert reference.decode(chat.prompt_ids()).count(SYSTEM) == 1
            dropped += reply.dropped
        assert overflows >= 2
        assert [turn.instruction for turn in (*dropped, *chat.turns)] == [pair.instruction for pair in PAIRS[:24]]


@pytest.mark.parametrize("n_ctx", [DEFAULT_N_CTX, *SHORTER_CONTEXTS])
def test_a_conversation_goes_on_in_every_context_that_load_chooses(n_ctx: int) -> None:
    params = SamplingParams(temperature=0)
    kept_free = min(params.max_tokens, n_ctx // 2)
    with engine_of(1, n_ctx=n_ctx) as engine:
        chat = engine.chat(SYSTEM, params)
        for n in range(10):
            question, before = PAIRS[n].instruction, chat.turns
            reply = chat.send(question)
            assert reply.stats.prompt_tokens + kept_free <= n_ctx
            assert bool(reply.dropped) == (len(ids_of(before, question, SYSTEM)) + kept_free > n_ctx)
            assert n != 1 or not reply.dropped


@pytest.mark.parametrize("max_tokens", [200, 300, 100_000])
def test_no_more_than_half_of_the_context_is_kept_free_for_an_answer(max_tokens: int) -> None:
    long = replace(GREEDY, max_tokens=max_tokens)
    with engine_of(1, n_ctx=400) as engine:
        chat = engine.chat(params=SHORT)
        chat.send(FIRST)
        while len(chat.prompt_ids(SECOND)) <= 200:
            assert chat.fit(SECOND, max_tokens) == (chat.prompt_ids(SECOND), ())
            chat.send(FIRST)
        reply = chat.send(SECOND, long)
        assert reply.dropped
        assert reply.stats.prompt_tokens <= 200


def test_an_answer_may_be_longer_than_what_was_kept_free_for_it() -> None:
    with engine_of(1, n_ctx=400) as engine:
        reply = engine.chat().send(FIRST, replace(ENDLESS, max_tokens=1000))
        assert (reply.finish_reason, len(reply.token_ids)) == ("length", 400 - reply.stats.prompt_tokens)


def test_an_instruction_needs_room_for_a_short_answer_only() -> None:
    with engine_of(1, n_ctx=256) as engine:
        chat = engine.chat(params=GREEDY)
        long = "長" * (256 - LEAST_ROOM - len(chat.prompt_ids("")))
        longest = next(long[n:] for n in range(len(long)) if len(chat.prompt_ids(long[n:])) <= 256 - LEAST_ROOM)
        assert len(chat.send(longest).token_ids) <= 256 - len(ids_of([], longest))
        chat.reset()
        with pytest.raises(PromptTooLong, match="256"):
            chat.send(longest + "いろは")


def test_a_question_that_does_not_fit_is_an_error_and_changes_nothing() -> None:
    with engine_of(1, n_ctx=256) as engine:
        chat = engine.chat(SYSTEM, SHORT)
        chat.send(FIRST)
        before = chat.turns
        for question, params in (("長" * 300, SHORT), ("長" * 300, replace(SHORT, max_tokens=1)), ("\ud83d", SHORT)):
            with pytest.raises(PromptError):
                chat.send(question, params)
            assert chat.turns == before
        assert chat.send(SECOND).finish_reason in ("stop", "length")


def test_a_stream_that_fails_changes_nothing_and_drops_nothing() -> None:
    def fail(*_: int) -> None:
        raise KeyError("mine")

    with engine_of(1, n_ctx=256) as engine:
        chat = engine.chat(params=SHORT)
        while len(chat.prompt_ids(FIRST)) + SHORT.max_tokens <= 256:
            chat.send(FIRST)
        before = chat.turns
        with pytest.raises(KeyError):
            chat.send(SECOND, on_progress=fail)
        assert chat.turns == before
        assert chat.send(SECOND).dropped


def test_undo_takes_the_last_turn_back(chat: ChatSession) -> None:
    chat.send(FIRST)
    before = chat.turns
    second = chat.send(SECOND)
    assert chat.undo() == SECOND
    assert chat.turns == before
    assert chat.send(SECOND).token_ids == second.token_ids
    chat.undo()
    chat.undo()
    with pytest.raises(PromptError):
        chat.undo()


def test_regenerate_answers_the_last_instruction_once_more(chat: ChatSession) -> None:
    with pytest.raises(PromptError):
        chat.regenerate()
    chat.send(FIRST)
    before = chat.turns
    reply = chat.send(SECOND)
    with chat.regenerate() as stream:
        text = "".join(chunk.text for chunk in stream)
    assert text == reply.text
    assert [turn.instruction for turn in chat.turns] == [FIRST, SECOND]
    with chat.regenerate(replace(GREEDY, max_tokens=2)) as stream:
        list(stream)
    assert chat.turns == (*before, Turn(SECOND, stream.reply.text, reply.token_ids[:2]))


def test_a_regeneration_that_cannot_begin_leaves_the_old_answer(chat: ChatSession) -> None:
    chat.send(FIRST)
    before = chat.turns
    chat.system = "長い話です。" * 600
    with pytest.raises(PromptTooLong):
        chat.regenerate()
    assert chat.turns == before


def test_reset_forgets_the_turns_and_keeps_the_system_message(engine: Engine) -> None:
    chat = engine.chat(SYSTEM, GREEDY)
    chat.send(FIRST)
    chat.reset()
    assert (chat.turns, chat.system, chat.tokens_used) == ((), SYSTEM, 0)
    assert chat.prompt_ids(SECOND) == ids_of([], SECOND, SYSTEM)


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_a_conversation_survives_json(engine: Engine, system: str | None) -> None:
    chat = engine.chat(system, GREEDY)
    for question in (FIRST, '改行\n\tと"引用"と絵文字🌸\u2028'):
        chat.send(question)
    loaded = ChatSession.from_dict(engine, json.loads(json.dumps(chat.to_dict())), GREEDY)
    assert (loaded.turns, loaded.system) == (chat.turns, chat.system)
    assert loaded.prompt_ids(THIRD) == chat.prompt_ids(THIRD)
    assert loaded.send(THIRD).token_ids == chat.send(THIRD).token_ids


SAVED: dict[str, Any] = {
    "format": 1,
    "system": None,
    "turns": [{"instruction": "a", "answer": "b", "answer_ids": [5, 6]}],
}
TURN = SAVED["turns"][0]


@pytest.mark.parametrize(
    "saved",
    [
        {},
        [],
        None,
        "text",
        *({key: value for key, value in SAVED.items() if key != missing} for missing in SAVED),
        SAVED | {"format": 2},
        SAVED | {"format": None},
        SAVED | {"system": 5},
        SAVED | {"turns": None},
        SAVED | {"turns": 5},
        SAVED | {"turns": ["a"]},
        SAVED | {"turns": [None]},
        *(SAVED | {"turns": [{key: v for key, v in TURN.items() if key != missing}]} for missing in TURN),
        *(
            SAVED | {"turns": [TURN | {"answer_ids": ids}]}
            for ids in (5, None, "56", [3000], [-1], [1.5], ["5"], [None])
        ),
        *(SAVED | {"turns": [TURN | {key: value}]} for key in ("instruction", "answer") for value in (5, None, ["a"])),
    ],
)
def test_a_damaged_conversation_is_refused(engine: Engine, saved: Any) -> None:
    with pytest.raises(WeblabError):
        ChatSession.from_dict(engine, saved)


def test_what_was_saved_before_is_read(engine: Engine) -> None:
    assert ChatSession.from_dict(engine, SAVED).turns == (Turn("a", "b", (5, 6)),)


def test_a_cancelled_answer_stays_as_it_is(engine: Engine, chat: ChatSession) -> None:
    for question in (FIRST, SECOND):
        stream, gate = paused(engine, lambda question=question: chat.stream(question))  # type: ignore[misc]
        stream.cancel()
        gate.open()
        list(stream)
        assert stream.reply.finish_reason == "cancelled"
        assert len(stream.reply.token_ids) == 1
        assert chat.turns[-1] == Turn(question, stream.reply.text, stream.reply.token_ids)
    prompt = ids_of(chat.turns, THIRD)
    reply = chat.send(THIRD)
    assert reference.is_greedy(prompt, [*reply.token_ids, *([reference.END] if reply.finish_reason == "stop" else [])])


def test_leaving_a_stream_waits_for_its_end_and_keeps_the_turn(engine: Engine, chat: ChatSession) -> None:
    stream, gate = paused(engine, lambda: chat.stream(FIRST))
    stream.cancel()
    gate.open()
    with stream:
        pass
    assert stream.reply.finish_reason == "cancelled"
    assert chat.turns == (Turn(FIRST, stream.reply.text, stream.reply.token_ids),)
    stream.close()
    assert len(chat.turns) == 1


def test_a_question_cancelled_while_it_is_read_has_an_empty_answer(chat: ChatSession) -> None:
    gate = Gate()
    stream = chat.stream("長い質問。" * 200, on_progress=gate)
    gate.wait()
    stream.cancel()
    gate.open()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    assert (chat.turns[-1].answer, chat.turns[-1].answer_ids) == ("", ())
    chat.undo()
    assert is_response(chat.send(SHORT_ANSWERS[0].instruction), SHORT_ANSWERS[0])


@pytest.mark.parametrize("ending", ["\n\n### 指示:\n次", "### 指示:", "終わり", "終わりです"])
def test_the_ids_of_a_turn_end_before_the_stop_string(chat: ChatSession, ending: str) -> None:
    """Also where a token holds the answer's end and the stop string's beginning: the next turn reads the text alone."""
    literal = ending.replace("\n", "\\n")
    params = SamplingParams(temperature=0, grammar=f'root ::= "東京です。{literal}"', stop="終わり")
    reply = chat.send(FIRST, params)
    assert (reply.text, reply.finish_reason) == ("東京です。", "stop")
    assert reference.decode(chat.turns[-1].answer_ids) == "東京です。"
    assert len(reply.token_ids) > len(chat.turns[-1].answer_ids)
    following = reference.decode(chat.prompt_ids(SECOND))
    assert following.endswith(f"\n\n### 応答:東京です。\n\n### 指示:\n{SECOND}\n\n### 応答:")


@pytest.mark.parametrize("seed", range(40))
def test_the_ids_of_an_answer_end_before_the_stop_string_whatever_bytes_came_before(engine: Engine, seed: int) -> None:
    """Tokens that are no UTF-8 come out as U+FFFD, three bytes for what may have been one."""
    rng = random.Random(seed)
    tokens = [*reference.encode("終わりです。Say hello."), *range(2, 260)]
    stop = reference.encode(rng.choice(["終わり", "###", "です。"]))
    ids = [*rng.choices(tokens, k=rng.randrange(1, 12)), *stop, *rng.choices(tokens, k=rng.randrange(3))]
    text, _, _ = decoded(engine, ids).partition(decoded(engine, stop))
    completion = replace(engine.generate(FIRST, ONE), text=text, token_ids=tuple(ids), finish_reason="stop")
    kept = engine.chat().answer_ids(completion)
    assert decoded(engine, kept) == text


def decoded(engine: Engine, ids: Sequence[int]) -> str:
    return b"".join(map(engine.piece, ids)).decode(errors="replace")


def test_two_conversations_with_one_engine_know_nothing_of_each_other(engine: Engine) -> None:
    one, other = engine.chat(params=GREEDY), engine.chat(SYSTEM, GREEDY)
    for n in range(20, 23):
        one.send(PAIRS[n].instruction)
        other.send(PAIRS[n + 3].instruction)
    assert [turn.instruction for turn in one.turns] == [FIRST, SECOND, THIRD]
    assert [turn.instruction for turn in other.turns] == [pair.instruction for pair in PAIRS[23:26]]
    assert one.prompt_ids(FIRST) == ids_of(one.turns, FIRST)
    assert other.prompt_ids(FIRST) == ids_of(other.turns, FIRST, SYSTEM)
