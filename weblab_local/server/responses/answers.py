"""Answers as the Responses API has them: one object, or events in their order."""

import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from weblab_local.engine.generation import Completion
from weblab_local.server.chat_completions import ChatCompletionRun
from weblab_local.server.choices import ChoiceChunk
from weblab_local.server.response_bodies import finish, usage_of
from weblab_local.server.responses.bodies import ResponseRequest

Store = Callable[[dict[str, Any], str], None]
"""Takes a response that has ended, and its text."""


class ResponseAnswer:
    """A chat completion under way, told as a response."""

    def __init__(self, run: ChatCompletionRun, body: ResponseRequest, model: str, store: Store) -> None:
        self._run = run
        self._body = body
        self._model = model
        self._store = store
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._id = f"resp_{uuid.uuid4().hex}"

    async def whole(self) -> dict[str, Any]:
        """Return the response, when it has ended."""
        (completion,) = await self._run.completed()
        return self._ended(completion)

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield its events, numbered."""
        number = 0
        async with aclosing(self._events()) as events:
            async for event in events:
                yield event | {"sequence_number": number}
                number += 1

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        begun = self._object("in_progress", [])
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        item = {"output_index": 0, "item": self._message("", "in_progress") | {"content": []}}
        part = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        yield {"type": "response.output_item.added", **item}
        yield {"type": "response.content_part.added", **part, "part": _text("")}
        async with aclosing(self._run.events()) as events:
            async for event in events:
                if isinstance(event, ChoiceChunk) and event.chunk.text:
                    yield {"type": "response.output_text.delta", **part, "delta": event.chunk.text, "logprobs": []}
        (completion,) = self._run.completions
        ended = self._ended(completion)
        yield {"type": "response.output_text.done", **part, "text": completion.text, "logprobs": []}
        yield {"type": "response.content_part.done", **part, "part": _text(completion.text)}
        yield {"type": "response.output_item.done", **item, "item": ended["output"][0]}
        yield {"type": f"response.{ended['status']}", "response": ended}

    def _ended(self, completion: Completion) -> dict[str, Any]:
        status = "completed" if finish(completion.finish_reason) == "stop" else "incomplete"
        usage = usage_of([completion.stats], [completion.stats])
        ended = self._object(status, [self._message(completion.text, status)]) | {
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
            "weblab": self._run.extension(completion.stats, timed_out=self._run.timed_out).model_dump(),
        }
        self._store(ended, completion.text)
        return ended

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_text(text)],
        }

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        form = body.text.format if body.text is not None else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._run.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": body.previous_response_id,
            "store": body.store,
            "temperature": body.temperature,
            "text": {"format": form.model_dump(by_alias=True) if form is not None else {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "auto",
            "usage": None,
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
