"""Conversations: what the model reads, the budget of tokens, taking back, saving, answers that were cut short."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests import reference
from tests.engines import GREEDY, PAIRS, SHORT_ANSWERS, Gate, engine_of, is_response, paused
from weblab_local.chat import ChatSession, Reply, Turn
from weblab_local.engine import Engine
from weblab_local.errors import PromptError, WeblabError
from weblab_local.sampling import SamplingParams

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
    return reference.conversation([(turn.instruction, turn.answer_ids) for turn in turns], instruction, system)


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


def test_long_answers_make_more_room_than_half() -> None:
    with engine_of(1, n_ctx=400) as engine:
        chat = engine.chat(params=SHORT)
        while chat.tokens_used < 200:
            chat.send(FIRST)
        reply = chat.send(SECOND, replace(GREEDY, max_tokens=300))
        assert reply.dropped
        assert reply.stats.prompt_tokens <= 100


def test_a_question_that_does_not_fit_is_an_error_and_changes_nothing() -> None:
    with engine_of(1, n_ctx=256) as engine:
        chat = engine.chat(SYSTEM, SHORT)
        chat.send(FIRST)
        before = chat.turns
        for question, params in (("長" * 300, SHORT), ("短い", replace(SHORT, max_tokens=250)), ("\ud83d", SHORT)):
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
    with pytest.raises(PromptError):
        chat.regenerate(replace(GREEDY, max_tokens=2040))
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


def test_two_conversations_with_one_engine_know_nothing_of_each_other(engine: Engine) -> None:
    one, other = engine.chat(params=GREEDY), engine.chat(SYSTEM, GREEDY)
    for n in range(20, 23):
        one.send(PAIRS[n].instruction)
        other.send(PAIRS[n + 3].instruction)
    assert [turn.instruction for turn in one.turns] == [FIRST, SECOND, THIRD]
    assert [turn.instruction for turn in other.turns] == [pair.instruction for pair in PAIRS[23:26]]
    assert one.prompt_ids(FIRST) == ids_of(one.turns, FIRST)
    assert other.prompt_ids(FIRST) == ids_of(other.turns, FIRST, SYSTEM)
