"""A server that is made before its process forks, as web servers that load an app ahead of their workers do."""

import asyncio
import os

import httpx2
import pytest

from tests.server.support import user
from tests.support.engines import SHORT_ANSWERS
from tests.support.forks import in_child
from weblab_local.engine.engine import Engine
from weblab_local.server.app import create_app
from weblab_local.server.config import ServerConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def test_a_child_answers_with_the_reason_and_the_parent_with_the_model(engine: Engine) -> None:
    app = create_app(engine, ServerConfig())
    body = {"messages": user(SHORT_ANSWERS[0].instruction), "temperature": 0}

    async def ask() -> tuple[int, str]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.post("/v1/chat/completions", json=body)
            return response.status_code, response.text

    here = asyncio.run(ask())  # from now on there is a thread that tokenizes, and waits for more
    assert here[0] == 200
    status, text = in_child(lambda: asyncio.run(ask()))
    assert status == 500
    assert "before this process was forked" in text
    assert asyncio.run(ask())[0] == 200
