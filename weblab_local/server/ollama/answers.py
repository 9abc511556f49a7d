"""Answers in Ollama's form: an object for each piece, the last one with counts and times in nanoseconds."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from weblab_local.engine.generation import Stats
from weblab_local.server.choices import ChoiceChunk
from weblab_local.server.completion_run import CompletionRun
from weblab_local.server.response_bodies import finish

NANOSECONDS = 1e9

Shape = Callable[[str], dict[str, Any]]
"""Puts a piece of text where the endpoint has it."""


def as_message(text: str) -> dict[str, Any]:
    """Where /api/chat has the text."""
    return {"message": {"role": "assistant", "content": text}}


def as_response(text: str) -> dict[str, Any]:
    """Where /api/generate has the text."""
    return {"response": text}


class OllamaAnswer:
    """A completion under way, whose one choice is told in Ollama's form."""

    def __init__(self, run: CompletionRun, model: str, shape: Shape) -> None:
        """`model` is the name that the client used."""
        self._run = run
        self._model = model
        self._shape = shape
        self._began = time.monotonic()

    async def whole(self) -> dict[str, Any]:
        """Return the answer, when it has ended."""
        (completion,) = await self._run.completed()
        ended = self._ended(completion.stats, finish(completion.finish_reason), timed_out=self._run.timed_out)
        return said(self._model, self._shape(completion.text)) | ended

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield it piece by piece; the last piece has no text."""
        async with aclosing(self._run.events()) as events:
            async for event in events:
                if not isinstance(event, ChoiceChunk):
                    continue
                chunk = event.chunk
                if chunk.text:
                    yield said(self._model, self._shape(chunk.text)) | {"done": False}
                if chunk.stats is not None and chunk.finish_reason is not None:
                    ended = self._ended(chunk.stats, finish(chunk.finish_reason), timed_out=event.timed_out)
                    yield said(self._model, self._shape("")) | ended

    def _ended(self, stats: Stats, reason: str, *, timed_out: bool) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": reason,
            "total_duration": round((time.monotonic() - self._began) * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": round(stats.prompt_seconds * NANOSECONDS),
            "eval_count": stats.completion_tokens,
            "eval_duration": round(stats.generation_seconds * NANOSECONDS),
            "weblab": self._run.extension(stats, timed_out=timed_out).model_dump(),
        }


def said(model: str, content: dict[str, Any]) -> dict[str, Any]:
    """An object of the stream."""
    return {"model": model, "created_at": instant(time.time())} | content


def loaded(model: str, content: dict[str, Any]) -> dict[str, Any]:
    """The answer to who only wants the model to be there."""
    return said(model, content) | {"done": True, "done_reason": "load"}


def instant(seconds: float) -> str:
    """A time, in seconds since 1970, as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
