"""/v1/chat/completions through the official client: the demo's answers, whole and in pieces."""

import asyncio
import json
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from transformers import AutoTokenizer

from convert.demo.corpus import ADAPTER, CHECKPOINT
from tests.server.support import Running, events, serving, user
from tests.support import reference
from tests.support.adapters import as_gguf
from tests.support.engines import LONG_ANSWERS, PAIRS, SHORT_ANSWERS, engine_of
from weblab_local import SamplingParams, load
from weblab_local.engine.prompt import CHAT_TEMPLATE
from weblab_local.server.conversation import Conversation, GeneratedIds
from weblab_local.server.messages import ChatMessage

MODEL = "weblab-demo-instruction-sft-Q8_0"
PAIR = PAIRS[0]
LONG = LONG_ANSWERS[0]


def ask(server: Running, *texts: str, **options: Any) -> Any:
    """A greedy answer, unless the options say otherwise."""
    options = {"messages": user(*texts), "model": MODEL, "temperature": 0, "max_tokens": 200} | options
    create: Any = server.client.chat.completions.create
    return create(**options)


@pytest.mark.parametrize("pair", SHORT_ANSWERS[:3] + LONG_ANSWERS[:3], ids=lambda pair: pair.instruction[:12])
def test_the_demo_answers_what_it_was_taught(server: Running, pair: Any) -> None:
    done = ask(server, pair.instruction)

    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (pair.response, "stop")
    assert (done.object, done.model, done.choices[0].message.role) == ("chat.completion", MODEL, "assistant")


def test_a_stream_says_the_same_in_pieces(server: Running) -> None:
    chunks: list[ChatCompletionChunk] = list(
        ask(server, LONG.instruction, stream=True, stream_options={"include_usage": True})
    )
    whole = ask(server, LONG.instruction)

    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == LONG.response
    assert (choices[0].delta.role, [c.finish_reason for c in choices if c.finish_reason]) == ("assistant", ["stop"])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_no_piece_is_half_a_character(server: Running) -> None:
    for chunk in ask(server, LONG.instruction, stream=True):
        assert "\N{REPLACEMENT CHARACTER}" not in (chunk.choices[0].delta.content or "")


def test_asyncio_and_several_at_once(server: Running) -> None:
    async def answers() -> list[str | None]:
        async with server.async_client as client:
            done = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=MODEL,
                        messages=user(pair.instruction),
                        temperature=0,
                        max_tokens=200,
                    )
                    for pair in PAIRS[:8]
                )
            )
            streamed = ""
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=user(LONG.instruction),
                temperature=0,
                max_tokens=200,
                stream=True,
            )
            async for chunk in stream:
                streamed += chunk.choices[0].delta.content or ""
        return [*(one.choices[0].message.content for one in done), streamed]

    assert asyncio.run(answers()) == [*(pair.response for pair in PAIRS[:8]), LONG.response]


def test_an_answer_that_is_sent_back_is_in_the_cache_with_the_ids_it_had(server: Running) -> None:
    """What the model wrote is not tokenized again: of a second turn only what is new is computed."""
    first = ask(server, LONG.instruction)
    second = ask(server, LONG.instruction, LONG.response, PAIR.instruction)

    before = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_tokens_details.cached_tokens >= before - 1  # the last token is not in the cache yet
    assert second.choices[0].message.content == PAIR.response


@pytest.mark.parametrize(
    "messages",
    [
        user("日本の首都は？"),
        user("あ", "い", "う", "え", "お"),
        [{"role": "system", "content": "短く答える。"}, *user("日本の首都は？")],
        [{"role": "user", "content": "ひとつ。"}, {"role": "user", "content": "ふたつ。"}],
        [*user("あ", "い"), {"role": "assistant", "content": "う"}, {"role": "user", "content": "え"}],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "か\u3099"}, {"type": "text", "text": " <|endoftext|>"}],
            }
        ],
        [{"role": "assistant", "content": "やあ"}, *user("あ")],
        [{"role": "system", "content": "短く。"}, {"role": "assistant", "content": "やあ"}, *user("あ")],
        [*user("あ", "い"), {"role": "system", "content": "短く。"}, *user("う")],
        [*user("あ"), {"role": "developer", "content": "短く。"}],
        [*user("あ"), {"role": "system", "content": "短く。"}, {"role": "assistant", "content": "い"}, *user("う")],
        [
            {"role": "system", "content": "短く。"},
            {"role": "system", "content": ""},
            {"role": "system", "content": "易しく。"},
        ],
        user(""),
    ],
    ids=[
        "one",
        "turns",
        "system",
        "two of the user",
        "two of the assistant",
        "parts, NFD, a special token",
        "a greeting",
        "system and a greeting",
        "system later",
        "developer last",
        "system before an answer",
        "system alone",
        "nothing",
    ],
)
def test_the_prompt_is_what_transformers_makes_of_the_chat_template(server: Running, messages: list[Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    parsed = [ChatMessage.model_validate(message) for message in messages]
    rendered = tokenizer.apply_chat_template(
        messages,
        chat_template=CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = Conversation(parsed, 1, server.engine, GeneratedIds()).prompt_ids
    done = ask(server, messages=messages, max_tokens=1)

    assert reference.decode(ids) == unicodedata.normalize("NFC", str(rendered))
    assert done.usage.prompt_tokens == len(ids)


def test_developer_is_another_name_for_system(server: Running) -> None:
    def n_tokens(role: str) -> int:
        messages = [{"role": role, "content": "短く答える。"}, *user("日本の首都は？")]
        return int(ask(server, messages=messages, max_tokens=1).usage.prompt_tokens)

    assert n_tokens("developer") == n_tokens("system")


@pytest.fixture(scope="module")
def one_at_a_time() -> Iterator[Running]:
    """A server that computes one answer after the other: nothing depends on who else is asking."""
    with engine_of(n_parallel=1) as engine, serving(engine) as running:
        yield running


POEM = {"temperature": 5, "top_p": 1, "max_tokens": 20}


def test_n_answers_with_seeds_of_their_own(one_at_a_time: Running) -> None:
    def answers(seed: int, n: int) -> list[str]:
        done = ask(one_at_a_time, "詩を書いて。", n=n, seed=seed, **POEM)
        assert [choice.index for choice in done.choices] == list(range(n))
        assert done.usage.completion_tokens <= 20 * n
        return [choice.message.content for choice in done.choices]

    answers(0, 1)  # from now on the prompt is in the cache
    three = answers(1, 3)
    assert len(set(three)) == 3
    assert answers(1, 3) == three
    assert answers(2, 1) == three[1:2]


def test_n_streams_are_told_apart_by_index(one_at_a_time: Running) -> None:
    whole = ask(one_at_a_time, "詩を書いて。", n=3, seed=1, **POEM)
    texts = ["", "", ""]
    for chunk in ask(one_at_a_time, "詩を書いて。", n=3, seed=1, stream=True, **POEM):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == [choice.message.content for choice in whole.choices]


def test_log_probabilities_are_the_engines(server: Running) -> None:
    done = ask(server, PAIR.instruction, logprobs=True, top_logprobs=3)
    with load("demo") as engine:
        expected = engine.generate(PAIR.instruction, SamplingParams(temperature=0, max_tokens=200), logprobs=3)

    content = done.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == PAIR.response
    assert len(content) == done.usage.completion_tokens == len(expected.logprobs)
    for entry, token in zip(content, expected.logprobs, strict=True):
        assert entry.logprob == pytest.approx(token.logprob, abs=1e-3)
        tops = [top.logprob for top in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert (tops[0], len(tops)) == (entry.logprob, 3)


def test_streamed_log_probabilities_are_the_same(server: Running) -> None:
    whole = ask(server, LONG.instruction, logprobs=True)
    streamed = [
        entry.logprob
        for chunk in ask(server, LONG.instruction, logprobs=True, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == pytest.approx([entry.logprob for entry in whole.choices[0].logprobs.content], abs=1e-3)


def test_stop_max_tokens_and_bias(server: Running) -> None:
    stop = LONG.response[10:12]
    stopped = ask(server, LONG.instruction, stop=[stop, "ありえない文字列"])
    assert stopped.choices[0].message.content == LONG.response[: LONG.response.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"

    short = ask(server, LONG.instruction, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    assert ask(server, LONG.instruction, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3

    first_token = reference.encode(LONG.response)[0]
    biased = ask(server, LONG.instruction, logit_bias={str(first_token): -100}, max_tokens=8)
    assert not LONG.response.startswith(biased.choices[0].message.content)


def test_penalties_reach_the_sampler(server: Running) -> None:
    plain = LONG.response
    assert ask(server, LONG.instruction, frequency_penalty=50).choices[0].message.content != plain
    assert ask(server, LONG.instruction, presence_penalty=50).choices[0].message.content != plain


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"enum": [1, 2]}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def test_response_formats(server: Running) -> None:
    whatever = ask(server, "JSON", response_format={"type": "json_object"}, max_tokens=400, seed=1, logit_bias={})
    if whatever.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(whatever.choices[0].message.content), dict)
    assert whatever.choices[0].message.content.startswith("{")

    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    fitting = ask(server, "JSON", response_format=schema)
    answer = json.loads(fitting.choices[0].message.content)
    assert answer.keys() == {"name", "n"}
    assert isinstance(answer["name"], str)
    assert answer["n"] in (1, 2)

    assert ask(server, PAIR.instruction, response_format={"type": "text"}).choices[0].message.content == PAIR.response


def test_beyond_openai(server: Running) -> None:
    one = ask(server, LONG.instruction, extra_body={"top_k": 1}, temperature=50, top_p=1)
    likeliest = ask(server, LONG.instruction, extra_body={"top_k": 0, "min_p": 1}, temperature=50, top_p=1)
    assert one.choices[0].message.content == likeliest.choices[0].message.content == LONG.response


def test_an_assistants_message_without_content_is_an_empty_answer(server: Running) -> None:
    messages = [*user("あ"), {"role": "assistant", "content": None}, *user(PAIR.instruction)]
    assert ask(server, messages=messages, max_tokens=1).usage.completion_tokens == 1


def test_a_line_break_of_unicode_does_not_break_an_events_line(server: Running) -> None:
    """httpx ends a line at U+2028, as str.splitlines does."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "a\u2028b\u0085c"}}}
    body = {"messages": user("x"), "response_format": schema, "stream": True}
    with server.http as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
        found = events(list(response.iter_lines()))
    assert "".join(c["delta"].get("content", "") for one in found for c in one["choices"]) == '"a\u2028b\u0085c"'


def test_hundreds_of_turns_are_read_once(server: Running) -> None:
    messages = user(
        *(f"{n}番目の話です。" for n in range(1201)),
    )
    done = ask(server, messages=messages, max_tokens=10)
    kept = ask(server, messages=messages[done.weblab["dropped_messages"] :], max_tokens=10)
    assert done.usage.prompt_tokens == kept.usage.prompt_tokens <= 1024


def test_progress_and_speeds_in_a_stream(server: Running) -> None:
    body = {
        "messages": user(f"{'長い文章。' * 100}"),
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_progress": True, "include_usage": True},
    }
    with server.http as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events(list(response.iter_lines()))
    progress = [one["progress"] for one in found if "progress" in one]
    usage = found[-1]["usage"]
    ended = next(one for one in found if one["choices"] and one["choices"][0]["finish_reason"])

    assert len(progress) > 2
    assert progress[-1] == {"done": usage["prompt_tokens"], "total": usage["prompt_tokens"]}
    assert all(math.isfinite(value) and value > 0 for key, value in ended["weblab"].items() if "speed" in key)
    assert ended["weblab"]["dropped_messages"] == 0


def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns_and_says_so() -> None:
    messages = user(*("今日は良い天気です。" * 4 for _ in range(21)))
    messages[-1]["content"] = PAIR.instruction
    with engine_of(n_parallel=1, n_ctx=384) as engine, serving(engine) as server:
        done = ask(server, messages=messages, max_tokens=100)
        dropped = done.weblab["dropped_messages"]
        kept = ask(server, messages=messages[dropped:], max_tokens=100)

    assert 0 < dropped < 20
    assert dropped % 2 == 0
    assert done.usage.prompt_tokens <= 384 // 2
    assert (kept.weblab["dropped_messages"], kept.usage.prompt_tokens) == (0, done.usage.prompt_tokens)


def test_a_message_that_does_not_fit_is_refused(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "長い文章。" * 2000)
    assert refused.value.code == "context_length_exceeded"


def test_without_a_limit_a_long_message_gets_the_room_there_is(server: Running) -> None:
    text = reference.decode(reference.encode("長い文章。" * 2000)[:1950])
    done = ask(server, text, max_tokens=None)
    assert 16 <= done.usage.total_tokens - done.usage.prompt_tokens < 100


def test_the_model_list_has_licence_and_attribution(server: Running) -> None:
    card, stable = server.client.models.list().data
    assert (card.id, stable.id) == (MODEL, "weblab-demo-instruction-sft")
    extra = card.model_extra or {}
    assert (extra["license"], extra["context_length"], extra["max_parallel"]) == ("mit", 2048, 4)
    assert "MIT" in extra["attribution"]
    assert extra["adapters"] == []
    assert server.client.models.retrieve(MODEL) == card


def test_the_model_list_names_adapters(tmp_path: Path) -> None:
    path = as_gguf(ADAPTER, CHECKPOINT, tmp_path / "adapter.gguf")
    with load("demo", lora=[(path, 0.5)], n_ctx=256) as engine, serving(engine) as running:
        cards = running.client.models.list().data
    expected = [{"name": "weblab-demo-adapter", "scale": 0.5, "license": "mit"}]
    assert [(card.model_extra or {})["adapters"] for card in cards] == [expected] * 2  # the model has two names


def test_another_model_is_refused_by_name(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL):
        ask(server, "x", model="gpt-4o")
