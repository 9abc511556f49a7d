"""`/metrics` beside what clients were told of the same answers."""

import re
from typing import Any

import pytest
from llama_cpp import llama_cpp as lib

from tests.server.support import Running, post, serving, until, until_idle, user
from tests.support.engines import LONG_ANSWERS, PAIRS, engine_of, hold
from weblab_local.engine.engine import Engine
from weblab_local.engine.roster import Occupancy
from weblab_local.server.metrics import Metrics

LINE = re.compile(r"(?:# HELP (?P<name>[a-z_:]+) .+\n# TYPE (?P=name) (?:counter|gauge)\n(?P=name) [\d.e+-]+\n)+")


def figures(server: Running) -> dict[str, float]:
    with server.http as http:
        response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert LINE.fullmatch(response.text)
    rows = [line.split(" ") for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_the_sums_are_those_of_the_answers() -> None:
    with engine_of(n_parallel=1) as engine, serving(engine, metrics=True) as server:
        assert {*figures(server).values()} == {0.0}
        usages: list[Any] = [
            server.client.chat.completions.create(model="default", messages=user(pair.instruction), temperature=0).usage
            for pair in (LONG_ANSWERS[0], PAIRS[0])
        ]
        found = figures(server)
        n_held = lib.llama_memory_seq_pos_max(engine._context._memory, 0) + 1
    assert found["llamacpp:kv_cache_tokens"] == n_held > 0
    assert found["llamacpp:kv_cache_usage_ratio"] == pytest.approx(n_held / 2048)
    cached = sum(usage.prompt_tokens_details.cached_tokens or 0 for usage in usages)
    assert found["weblab:prompt_tokens_cached_total"] == cached > 0
    assert found["llamacpp:prompt_tokens_total"] == sum(usage.prompt_tokens for usage in usages) - cached
    assert found["llamacpp:tokens_predicted_total"] == sum(usage.completion_tokens for usage in usages)
    assert found["weblab:answers_total"] == 2
    assert found["llamacpp:predicted_tokens_seconds"] == pytest.approx(
        found["llamacpp:tokens_predicted_total"] / found["llamacpp:tokens_predicted_seconds_total"]
    )


def test_who_is_computed_who_waits_and_who_was_refused() -> None:
    with engine_of(n_parallel=1) as engine, serving(engine, metrics=True, queue=1) as server:
        gate, held = hold(engine)
        asked = post("/v1/chat/completions", {"messages": user(PAIRS[0].instruction)})
        waiting = [server.raw(asked) for _ in range(2)]
        until(lambda: len(engine._scheduler._waiting) == 2)
        with server.http as http:
            assert http.post("/v1/chat/completions", json={"messages": user("x")}).status_code == 429
        found = figures(server)
        gate.open()
        list(held)
        until_idle(server)
        for connection in waiting:
            connection.close()
    assert (found["llamacpp:requests_processing"], found["llamacpp:requests_deferred"]) == (1, 1)
    assert found["weblab:requests_refused_total"] == 1


def test_what_was_preempted_and_waits() -> None:
    text = Metrics().text(1, 0, Occupancy(n_cells=512, n_preempted=2), n_ctx=2048)
    assert LINE.fullmatch(text)
    assert "\nweblab:requests_preempted 2\n" in text
    assert "\nllamacpp:kv_cache_usage_ratio 0.25\n" in text


def test_without_the_option_there_is_nothing(engine: Engine) -> None:
    with serving(engine) as server, server.http as http:
        assert http.get("/metrics").status_code == 404
