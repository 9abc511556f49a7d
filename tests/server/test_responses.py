"""/v1/responses through the official client: create, stream, parse, what is stored, what is refused."""

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.server.support import Running, serving, user
from tests.support import reference
from tests.support.engines import LONG_ANSWERS, PAIRS
from weblab_local.engine.engine import Engine
from weblab_local.engine.prompt import conversation_turn

PAIR, LONG = PAIRS[0], LONG_ANSWERS[0]


def create(server: Running, **options: Any) -> Any:
    make: Any = server.client.responses.create
    return make(**{"model": "default", "temperature": 0} | options)


def test_a_text_and_items_are_answered(server: Running) -> None:
    done = create(server, input=LONG.instruction)
    assert (done.output_text, done.status, done.object) == (LONG.response, "completed", "response")
    assert done.usage.input_tokens == len(reference.encode(LONG.prompt))
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    parts = [{"type": "input_text", "text": PAIR.instruction}]
    again = [*user(LONG.instruction), *(one.model_dump() for one in done.output), {"role": "user", "content": parts}]
    assert create(server, input=again).output_text == PAIR.response


def test_instructions_are_a_system_message(server: Running) -> None:
    done = create(server, input=PAIR.instruction, instructions="短く。", max_output_tokens=1)
    asked = PAIR.prompt.replace(PAIR.instruction, f"短く。\n\n{PAIR.instruction}")
    assert done.usage.input_tokens == len(reference.encode(asked))
    assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_the_events_come_in_their_order(server: Running) -> None:
    events = list(create(server, input=LONG.instruction, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 2
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4 : 4 + deltas]) == LONG.response
    assert events[-1].response.output_text == LONG.response
    assert server.client.responses.retrieve(events[-1].response.id) == events[-1].response


def test_the_clients_stream_and_parse(server: Running) -> None:
    class Answer(BaseModel):
        model_config = ConfigDict(extra="forbid")

        n: Literal[1, 2]

    with server.client.responses.stream(model="default", input=LONG.instruction, temperature=0) as stream:
        assert stream.get_final_response().output_text == LONG.response
    parsed = server.client.responses.parse(model="default", input="JSON", text_format=Answer, temperature=0)
    assert parsed.output_parsed is not None
    assert parsed.output_parsed.n in (1, 2)


def test_a_stored_response_is_gone_on_with_until_it_is_deleted(server: Running) -> None:
    first = create(server, input=LONG.instruction, instructions="短く。", max_output_tokens=5)
    second = create(server, input=PAIR.instruction, previous_response_id=first.id, max_output_tokens=1)
    asked = [*reference.encode(LONG.prompt), *reference.encode(first.output_text)]
    assert second.usage.input_tokens == len([*asked, *reference.encode(conversation_turn(PAIR.instruction))])
    assert server.client.responses.retrieve(first.id) == first
    server.client.responses.delete(first.id)
    for again in (
        lambda: server.client.responses.retrieve(first.id),
        lambda: server.client.responses.delete(first.id),
        lambda: create(server, input="x", previous_response_id=first.id),
    ):
        with pytest.raises(openai.NotFoundError):
            again()


def test_no_more_are_stored_than_may_be(engine: Engine) -> None:
    with serving(engine, responses=1) as server:
        unstored, first, second = (
            create(server, input=PAIR.instruction, max_output_tokens=1, store=store).id for store in (False, True, True)
        )
        for gone in (unstored, first):
            with pytest.raises(openai.NotFoundError):
                server.client.responses.retrieve(gone)
        assert server.client.responses.retrieve(second).id == second


def test_what_changes_nothing_is_named(server: Running) -> None:
    done = create(
        server, input=PAIR.instruction, tools=[], reasoning={"effort": "low"}, truncation="auto", tool_choice="auto"
    )
    assert done.output_text == PAIR.response
    assert {*done.weblab["ignored"]} == {"tools", "reasoning", "truncation", "tool_choice"}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "x"}, "conversation"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": []}, "input"),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ],
)
def test_what_would_make_the_answer_another_one_is_refused(server: Running, options: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(server, **{"input": "x"} | options)
    assert str(refused.value.param).startswith(param)
