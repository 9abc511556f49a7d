"""The routes of the Responses API: create, retrieve, delete."""

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from weblab_local.server.chat_completions import ChatCompletionRun
from weblab_local.server.connection import TypedEventStream, answered
from weblab_local.server.errors import validation_error
from weblab_local.server.messages import ChatMessage
from weblab_local.server.responses.answers import ResponseAnswer
from weblab_local.server.responses.bodies import ResponseRequest
from weblab_local.server.responses.stored import Stored
from weblab_local.server.state import ServerState


class ResponseObject(BaseModel):
    """A response, with more than is listed here."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    status: Literal["completed", "incomplete"]
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


_EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
_STREAMS: Any = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}


def responses_routes(current: Callable[[], ServerState], errors: Any) -> APIRouter:
    """The routes under /v1/responses; `errors` describes what goes wrong."""
    router = APIRouter(prefix="/v1/responses", responses=errors)

    @router.post("", response_model=ResponseObject, responses=_STREAMS)
    async def create(body: ResponseRequest, request: Request) -> Any:
        """The answer to an input; with `stream` as server-sent events."""
        state = current()
        before = [] if body.previous_response_id is None else _before(state, body.previous_response_id)
        try:
            asked = body.request(before)
        except ValidationError as error:
            raise validation_error(error.errors()) from None

        def store(response: dict[str, Any], text: str) -> None:
            if body.store:
                said = ChatMessage.of("assistant", text)
                state.responses.keep(Stored(response, [*before, *body.messages, said]))

        run = await answered(request, ChatCompletionRun.prepare(state, asked, body))
        answer = ResponseAnswer(run, body, state.model_id, store)
        if body.stream:
            return TypedEventStream(answer.stream(), run.generated, run.places)
        with run.places:
            return await answered(request, answer.whole())

    @router.get("/{response_id}")
    async def retrieve(response_id: str) -> ResponseObject:
        """A stored response."""
        return ResponseObject(**current().responses.find(response_id).response)

    @router.delete("/{response_id}")
    async def delete(response_id: str) -> Deleted:
        """Forget a stored response."""
        current().responses.delete(response_id)
        return Deleted(id=response_id)

    return router


def _before(state: ServerState, response_id: str) -> list[ChatMessage]:
    return list(state.responses.find(response_id, "previous_response_id").messages)
