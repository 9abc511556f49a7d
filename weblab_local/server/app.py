"""The ASGI app: its routes, and what stands around them."""

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

import weblab_local
from weblab_local.attribution import attribution
from weblab_local.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.server.chat_completions import ChatAnswer
from weblab_local.server.completions import TextAnswer
from weblab_local.server.config import ServerConfig
from weblab_local.server.connection import stream_response, while_connected
from weblab_local.server.errors import ErrorResponse, api_error, validation_error
from weblab_local.server.guard import Guard
from weblab_local.server.requests import ChatRequest, CompletionRequest
from weblab_local.server.responses import ChatCompletion, Health, ModelCard, ModelList, TextCompletion
from weblab_local.server.state import ServerState
from weblab_local.server.static import add_page

_ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorResponse, "description": "An error object"}}
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def create_app(engine: Engine, config: ServerConfig) -> ASGIApp:
    """The server as an ASGI app. The engine stays the caller's, to be closed after the app has ended."""
    app = FastAPI(
        title="weblab-local",
        version=weblab_local.__version__,
        description=str(attribution(engine.metadata)),
        docs_url=None,
        redoc_url=None,
    )
    for kind in (RequestValidationError, HTTPException, WeblabError, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.include_router(_api(ServerState(engine, config)), dependencies=_key_scheme(config))

    @app.get("/health", responses=_ERRORS)
    def health() -> Health:
        """Whether the server answers; needs no key."""
        return Health()

    add_page(app)
    guarded = Guard(app, config)
    if not config.cors_origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=config.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["Retry-After"],
    )


def _key_scheme(config: ServerConfig) -> list[Any]:
    """Says in the OpenAPI description that a key is wanted; the guard is what asks for it."""
    return [Depends(HTTPBearer(auto_error=False))] if config.api_keys else []


def _answer_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        return validation_error(error.errors()).response()
    return api_error(error).response()


def _api(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=_ERRORS)

    @router.post("/chat/completions", response_model=ChatCompletion, responses=_STREAMS)
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        """The next answer in a conversation; with `stream` as server-sent events."""
        answer = await while_connected(request.receive, ChatAnswer.of(state, body))
        if body.stream:
            return await stream_response(request.receive, answer.stream())
        return await while_connected(request.receive, answer.whole())

    @router.post("/completions", response_model=TextCompletion, responses=_STREAMS)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        """What comes after a text; with `stream` as server-sent events."""
        answer = await while_connected(request.receive, TextAnswer.of(state, body))
        if body.stream:
            return await stream_response(request.receive, answer.stream())
        return await while_connected(request.receive, answer.whole())

    @router.get("/models")
    def models() -> ModelList:
        """The model that is loaded, with its licence."""
        return ModelList(data=[_card(state)])

    @router.get("/models/{model_id}")
    def model(model_id: str) -> ModelCard:
        """The same by its name."""
        state.require_model(model_id)
        return _card(state)

    return router


def _card(state: ServerState) -> ModelCard:
    engine = state.engine
    found = attribution(engine.metadata)
    return ModelCard(
        id=state.model_id,
        created=state.created,
        owned_by=found.authors or "unknown",
        context_length=engine.longest_sequence,
        max_parallel=engine.n_parallel,
        instruction_tuned=engine.has_template,
        license=found.licence,
        attribution=str(found),
    )
