"""A thousand requests of every kind against one server: what is answered is whole, and nothing is left behind."""

import asyncio
import gc
import json
import random
from collections import Counter
from typing import Any

import httpx2
import psutil
import pytest

from tests.server.support import Running, serving, until, until_idle, user
from tests.support.engines import PAIRS, PATIENCE, engine_of
from weblab_local.engine.generation import AsyncGeneration

CHAT = "/v1/chat/completions"
REQUESTS, AT_ONCE = 1000, 24
LEAST_ANSWERED = 150

Outcome = str


async def known(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """A prompt of the demo's own at temperature 0: word for word, or 429."""
    pair = rng.choice(PAIRS)
    body = {"messages": user(pair.instruction), "temperature": 0, "max_tokens": 200}
    response = await client.post(CHAT, json=body)
    if response.status_code == 429:
        assert int(response.headers["retry-after"]) >= 1
        return "refused"
    choice = response.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (pair.response, "stop")
    return "answered"


async def streamed(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """The same as a stream, with its usage."""
    pair = rng.choice(PAIRS)
    body = {
        "messages": user(pair.instruction),
        "temperature": 0,
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.stream("POST", CHAT, json=body) as response:
        if response.status_code == 429:
            return "refused"
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    objects = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(c["delta"].get("content", "") for one in objects for c in one["choices"])
    assert text == pair.response
    assert objects[-1]["usage"]["completion_tokens"] > 0
    return "answered"


async def sampled(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """Any length of prompt and answer, several answers: as many tokens as the usage says, or fewer at the end."""
    body = {
        "messages": user("長い文章。" * rng.randint(1, 120)),
        "max_tokens": rng.randint(1, 60),
        "n": rng.randint(1, 3),
        "temperature": rng.uniform(0, 2),
        "seed": rng.randint(0, 5),
        "logprobs": rng.random() < 0.3,
    }
    response = await client.post(CHAT, json=body)
    if response.status_code == 429:
        return "refused"
    done = response.json()
    assert len(done["choices"]) == body["n"]
    assert done["usage"]["completion_tokens"] <= body["max_tokens"] * body["n"]  # type: ignore[operator]
    for choice in done["choices"]:
        assert choice["finish_reason"] in ("stop", "length")
        assert (choice["logprobs"] is not None) == body["logprobs"]
    return "answered"


async def leaves_stream(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """Goes away after some pieces."""
    body = {"messages": user("x" * rng.randint(1, 300)), "max_tokens": 400, "stream": True}
    async with client.stream("POST", CHAT, json=body) as response:
        pieces = rng.randint(0, 5)
        async for _line in response.aiter_lines():
            pieces -= 1
            if pieces < 0:
                break
    return "left"


async def gives_up(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """Waits no longer than a moment, in the queue, in the prompt or in the answer."""
    body = {"messages": user("長い文章。" * rng.randint(1, 120)), "max_tokens": 500}
    try:
        await client.post(CHAT, json=body, timeout=rng.uniform(0.001, 0.1))
    except httpx2.TimeoutException:
        return "left"
    return "answered"


BAD: list[Any] = [
    b"",
    b"{",
    b"\xff" * 50,
    {"messages": []},
    {"messages": user("x"), "tool_choice": "required"},
    {"messages": user("x"), "temperature": "hot"},
    {"messages": user("x" * 20000)},
    {"messages": user("x"), "grammar": "root ::= nothing"},
    {"messages": user("a" + "\u0300" * 9000)},
    {"messages": user("x"), "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}},
    {"messages": user([{}] * 250_000)},
    {"messages": [{"role": "user", "content": [{}] * 100}] * 2000},
    {"messages": user("x"), "temperature": "hot"} | {f"field {number}": 0 for number in range(60_000)},
    {"messages": user("x"), "logit_bias": dict.fromkeys(map(str, range(60_000)), "x")},
    {"messages": user("長い文章。\n" * 30_000)},
    {"messages": user(" " * 1_000_000)},
    {"messages": user((" " * 9 + "a") * 100_000)},
]
"""Some are nearly as large as a body may be."""


async def bad(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """What is no request gets an error object with a 4xx."""
    body = rng.choice(BAD)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["message"]
    return "bad"


async def text(client: httpx2.AsyncClient, rng: random.Random) -> Outcome:
    """/v1/completions with several prompts."""
    pairs = rng.sample(PAIRS, rng.randint(1, 3))
    body = {"prompt": [pair.prompt for pair in pairs], "temperature": 0, "max_tokens": 200}
    response = await client.post("/v1/completions", json=body)
    if response.status_code == 429:
        return "refused"
    assert [choice["text"] for choice in response.json()["choices"]] == [pair.response for pair in pairs]
    return "answered"


KINDS = (known, known, known, streamed, streamed, sampled, leaves_stream, gives_up, bad, text)


async def storm(server: Running, seed: int, n: int) -> Counter[Outcome]:
    """`n` requests of random kinds, AT_ONCE at a time: what became of them."""
    rng = random.Random(seed)
    outcomes: Counter[Outcome] = Counter()
    limits = httpx2.Limits(max_connections=AT_ONCE)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as client:

        async def worker(n_requests: int) -> None:
            for _ in range(n_requests):
                outcomes[await rng.choice(KINDS)(client, rng)] += 1

        await asyncio.gather(*(worker(n // AT_ONCE + (index < n % AT_ONCE)) for index in range(AT_ONCE)))
    return outcomes


def memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def nothing_is_left() -> bool:
    """Whether no answer is held by anything but cycles, once the last request's task has let go of its own."""
    gc.collect()
    return not any(type(one) is AsyncGeneration for one in gc.get_objects())


@pytest.mark.parametrize("seed", [1])
def test_a_storm(seed: int) -> None:
    with engine_of(n_parallel=4) as engine, serving(engine, queue=16) as server:
        asyncio.run(storm(server, seed=0, n=200))  # buffers, code and caches find their size
        before = memory()
        outcomes = asyncio.run(storm(server, seed, REQUESTS))
        grown = memory() - before

        assert outcomes.total() == REQUESTS
        assert outcomes["answered"] > LEAST_ANSWERED
        assert min(outcomes["refused"], outcomes["left"], outcomes["bad"]) > 0
        until_idle(server)
        until(nothing_is_left)
        assert grown < 40 << 20
        pair = PAIRS[0]
        done = server.client.chat.completions.create(model="default", messages=user(pair.instruction), temperature=0)
        assert done.choices[0].message.content == pair.response
