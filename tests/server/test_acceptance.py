"""What programs really send: what changes no answer is accepted and named, and what can be honoured is."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.support import Running, events, serving, user
from tests.support import reference
from tests.support.engines import LONG_ANSWERS, PAIRS, engine_of
from weblab_local.engine.engine import Engine
from weblab_local.engine.prompt import instruction_prompt
from weblab_local.server.conversation import Conversation, GeneratedIds
from weblab_local.server.messages import ChatMessage

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MODEL = "weblab-demo-instruction-sft-Q8_0"
PAIR, LONG = PAIRS[0], LONG_ANSWERS[0]
ASKED = {"messages": user(PAIR.instruction), "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def post(server: Running, body: Any, path: str = CHAT) -> Any:
    """The answer to a request that is taken."""
    with server.http as http:
        response = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return response.json()


def content(done: Any) -> str:
    return str(done["choices"][0]["message"]["content"])


CHANGES_NOTHING: list[tuple[str, Any]] = [
    ("tools", []),
    ("tools", [TOOL]),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("parallel_tool_calls", True),
    ("store", False),
    ("metadata", {"a": "b"}),
    ("service_tier", "auto"),
    ("reasoning_effort", "low"),
    ("verbosity", "low"),
    ("safety_identifier", "x"),
    ("prompt_cache_key", "x"),
    ("prediction", {"type": "content", "content": "x"}),
    ("web_search_options", {}),
    ("chat_template_kwargs", {"enable_thinking": False}),
    ("add_generation_prompt", True),
    ("cache_prompt", True),
    ("id_slot", -1),
    ("keep_alive", "5m"),
    ("typical_p", 1.0),
    ("ignore_eos", False),
    ("stream_options", {"include_usage": True}),
    ("top_logprobs", 3),
    ("no_such_field", {"a": [1]}),
    ("half a pair", "\ud800"),
]


@pytest.mark.parametrize(("field", "value"), CHANGES_NOTHING)
def test_a_field_that_changes_nothing_is_accepted_and_named(server: Running, field: str, value: Any) -> None:
    done = post(server, ASKED | {field: value})
    assert (content(done), done["weblab"]["ignored"]) == (PAIR.response, [field])


@pytest.mark.parametrize("field", ["echo_prompt", "cache_prompt", "n_probs", "stream_options"])
def test_so_it_is_in_completions(server: Running, field: str) -> None:
    done = post(server, {"prompt": PAIR.prompt, "temperature": 0, "max_tokens": 200, field: {"x": 1}}, TEXT)
    assert (done["choices"][0]["text"], done["weblab"]["ignored"]) == (PAIR.response, [field])


HONOURED: list[dict[str, Any]] = [
    {"modalities": ["text"]},
    {"modalities": []},
    {"grammar": ""},
    {"stop": ""},
    {"stop": []},
    {"stop": ["", "ありえない文字列"]},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_tokens": None},
    {"max_tokens": 200.0},
    {"max_completion_tokens": -1},
    {"n_predict": -1},
    {"top_k": -1},
    {"top_k": 0},
    {"top_k": 40.0},
    {"n": 1.0},
    {"seed": 10**30},
    {"seed": -(10**30)},
    {"seed": 1.0},
    {"seed": -1},
    {"repetition_penalty": 1},
    {"logit_bias": {}},
    {"response_format": {"type": "text"}},
    {"tools": None, "functions": None, "stream_options": None},
    {"user": "me"},
]


@pytest.mark.parametrize("fields", HONOURED, ids=str)
def test_values_as_programs_write_them(server: Running, fields: dict[str, Any]) -> None:
    done = post(server, ASKED | fields)
    assert (content(done), done["weblab"]["ignored"]) == (PAIR.response, [])


def test_the_names_of_the_limit(server: Running) -> None:
    def n_tokens(**limits: Any) -> tuple[int, list[str]]:
        done = post(server, ASKED | {"messages": user(LONG.instruction)} | limits)
        return done["usage"]["completion_tokens"], done["weblab"]["ignored"]

    assert n_tokens(n_predict=3) == (3, [])
    assert n_tokens(max_tokens=4, n_predict=4.0) == (4, [])
    assert n_tokens(max_tokens=4, n_predict=3) == (4, ["n_predict"])
    assert n_tokens(max_completion_tokens=5, max_tokens=4) == (5, ["max_tokens"])
    whole = post(server, {"prompt": LONG.prompt, "temperature": 0, "n_predict": -1}, TEXT)
    assert whole["choices"][0]["text"] == LONG.response
    three = post(server, {"prompt": LONG.prompt, "n_predict": 3}, TEXT)
    assert three["usage"]["completion_tokens"] == 3
    both = post(server, {"prompt": LONG.prompt, "n_predict": 3, "max_tokens": 4}, TEXT)
    assert (both["usage"]["completion_tokens"], both["weblab"]["ignored"]) == (4, ["n_predict"])


def test_without_a_limit_an_answer_may_be_as_long_as_the_context() -> None:
    with engine_of(n_parallel=1, n_ctx=640) as engine, serving(engine) as server:
        body = ASKED | {"logit_bias": {str(reference.END): -1e6}, "max_tokens": -1}
        usage = post(server, body)["usage"]
    assert usage["total_tokens"] == 640


@pytest.fixture(scope="module")
def one_at_a_time() -> Iterator[Running]:
    """A server whose answers depend on nobody else."""
    with engine_of(n_parallel=1) as engine, serving(engine) as running:
        yield running


def test_a_penalty_by_either_name(one_at_a_time: Running) -> None:
    def answered(**penalties: float) -> Any:
        return post(one_at_a_time, {"messages": user(LONG.instruction), "temperature": 0, "max_tokens": 60} | penalties)

    answered()  # from now on the prompt is in the cache
    ours = answered(repeat_penalty=5)
    assert content(ours) != LONG.response
    assert content(answered(repetition_penalty=5)) == content(ours)
    both = answered(repeat_penalty=5, repetition_penalty=1)
    assert (content(both), both["weblab"]["ignored"]) == (content(ours), ["repetition_penalty"])


def test_a_seed_of_minus_one_is_drawn(one_at_a_time: Running) -> None:
    def answers(seed: int) -> set[str]:
        body = {"messages": user("詩を書いて。"), "temperature": 5, "top_p": 1, "max_tokens": 20, "seed": seed}
        post(one_at_a_time, body)  # from now on the prompt is in the cache
        return {content(post(one_at_a_time, body)) for _ in range(2)}

    assert len(answers(-1)) == 2
    assert len(answers(10**30)) == 1


def test_the_last_chunk_of_a_stream_names_them(server: Running) -> None:
    body = ASKED | {"stream": True, "store": True, "stream_options": {"include_usage": False, "x": 1}}
    with server.http as http, http.stream("POST", CHAT, json=body) as response:
        last = events(list(response.iter_lines()))[-1]
    assert last["weblab"]["ignored"] == ["store", "stream_options.x"]


def test_each_is_named_once_without_its_position(server: Running) -> None:
    part = {"type": "text", "text": PAIR.instruction, "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": "あ", "name": "me"},
        {"role": "assistant", "content": "い", "refusal": "x", "tool_calls": [], "reasoning_content": ""},
        {"role": "user", "content": [part], "name": "me"},
    ]
    done = post(server, ASKED | {"messages": messages})
    assert content(done) == PAIR.response
    assert done["weblab"]["ignored"] == [
        "messages.name",
        "messages.refusal",
        "messages.reasoning_content",
        "messages.content.cache_control",
    ]


def test_a_field_of_a_response_format_that_is_not_known(server: Running) -> None:
    schema = {"name": "x", "schema": {"const": 5}, "strict": True, "more": 1}
    done = post(server, ASKED | {"response_format": {"type": "json_schema", "json_schema": schema}})
    assert (content(done), done["weblab"]["ignored"]) == ("5", ["response_format.json_schema.more"])
    assert content(post(server, ASKED | {"response_format": {"type": "json_object", "schema": {"const": 5}}})) == "5"


GREETING = {"role": "assistant", "content": "こんにちは。"}


@pytest.mark.parametrize(
    "messages",
    [
        [GREETING, *user(PAIR.instruction)],
        [{"role": "system", "content": "短く。"}, GREETING, *user(PAIR.instruction)],
        [*user("あ", "い"), {"role": "system", "content": "短く。"}, *user(PAIR.instruction)],
        [*user("あ", "", PAIR.instruction)],
        [{"role": "system", "content": "短く。"}],
        user(""),
        [GREETING],
    ],
    ids=["greeting", "system and greeting", "system later", "empty answer", "system alone", "empty", "greeting alone"],
)
def test_messages_in_any_order(server: Running, messages: list[Any]) -> None:
    done = post(server, {"messages": messages, "max_tokens": 5})
    assert done["usage"]["completion_tokens"] <= 5


def test_an_answer_goes_on_where_the_assistants_message_ends(server: Running) -> None:
    ids = reference.encode(LONG.response)
    half = next(text for n in range(8, len(ids)) if reference.encode(text := reference.decode(ids[:n])) == ids[:n])
    begun = {"role": "assistant", "content": half}
    for more in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        done = post(server, {"messages": [*user(LONG.instruction), begun], "temperature": 0} | more)
        assert half + content(done) == LONG.response
    anew = post(
        server, {"messages": [*user(LONG.instruction), begun], "max_tokens": 1, "continue_final_message": False}
    )
    expected = reference.encode(LONG.prompt) + reference.encode(half) + reference.encode("\n\n### 応答:")
    assert anew["usage"]["prompt_tokens"] == len(expected)


def test_it_goes_on_in_the_ids_it_had(one_at_a_time: Running) -> None:
    """Tokenized anew, an unlikely text has other ids; what was generated is read from the cache, its parts as one."""

    def answered(*messages: Any) -> tuple[str, Any]:
        body = {"messages": messages, "temperature": 5, "top_p": 1, "seed": 1, "max_tokens": 20}
        done = post(one_at_a_time, body)
        return content(done), done["usage"]

    (question,) = user("詩を書いて。")
    half, first = answered(question)
    assert len(reference.encode(half)) != first["completion_tokens"]
    rest, second = answered(question, {"role": "assistant", "content": half})
    assert second["prompt_tokens"] == first["prompt_tokens"] + first["completion_tokens"]
    _text, third = answered(question, {"role": "assistant", "content": half + rest}, *user("次。"))
    assert third["prompt_tokens_details"]["cached_tokens"] >= second["total_tokens"] - 1


def test_what_does_not_fit_with_its_beginning_is_refused(server: Running) -> None:
    messages = [*user("x"), {"role": "assistant", "content": "長い文章。" * 2000}]
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(model="default", messages=messages)
    assert refused.value.code == "context_length_exceeded"


def test_old_turns_give_way_to_an_answers_beginning(engine: Engine) -> None:
    def fitted(*messages: dict[str, str]) -> Conversation:
        return Conversation([ChatMessage.model_validate(one) for one in messages], None, engine, GeneratedIds())

    text = reference.decode(reference.encode("長い文章。" * 2000)[:500])
    fits = fitted(GREETING, *user("あ", text, "い"), {"role": "assistant", "content": text})
    assert fits.dropped_messages == 0
    text = reference.decode(reference.encode("長い文章。" * 2000)[:900])
    begun = fitted(GREETING, *user("あ", text, "い"), {"role": "assistant", "content": text})
    assert begun.dropped_messages == 3  # of the greeting and the turn
    assert begun.prompt_ids == reference.encode(instruction_prompt("い")) + reference.encode(text)


def test_the_models_names(engine: Engine) -> None:
    with serving(engine, aliases=["gpt-4o", "matsuo-lab/weblab"]) as server:
        cards = server.client.models.list().data
        assert [card.id for card in cards] == [MODEL, "weblab-demo-instruction-sft", "gpt-4o", "matsuo-lab/weblab"]
        for name in ("default", "weblab-demo-instruction-sft", "matsuo-lab/weblab"):
            assert post(server, ASKED | {"model": name, "max_tokens": 1})["model"] == MODEL
        assert server.client.models.retrieve("matsuo-lab/weblab").id == "matsuo-lab/weblab"
        with pytest.raises(openai.NotFoundError):
            server.client.models.retrieve("gpt-4")
    with serving(engine, any_model=True) as server:
        assert content(post(server, ASKED | {"model": "gpt-4"})) == PAIR.response
