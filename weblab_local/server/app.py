"""The ASGI app: its routes, and what stands around them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

import weblab_local
from weblab_local.engine.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.models.attribution import attribution
from weblab_local.server.chat_completions import ChatCompletionRun
from weblab_local.server.completions import TextCompletionRun
from weblab_local.server.config import ServerConfig
from weblab_local.server.connection import EventStream, answered
from weblab_local.server.desktop.routes import Desktop, desktop_routes
from weblab_local.server.errors import ApiError, ErrorResponse, api_error, validation_error
from weblab_local.server.guard import CLIENT_LEFT, Guard
from weblab_local.server.llama_server import llama_server_routes
from weblab_local.server.metrics import MEDIA_TYPE
from weblab_local.server.ollama.routes import ollama_routes
from weblab_local.server.reading_ahead import ReadAheadRequest
from weblab_local.server.request_bodies import ChatCompletionRequest, CompletionRequest
from weblab_local.server.response_bodies import (
    AdapterCard,
    ChatCompletion,
    Health,
    ModelCard,
    ModelList,
    TextCompletion,
)
from weblab_local.server.responses.routes import responses_routes
from weblab_local.server.state import ServerState
from weblab_local.server.static import add_page

_ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorResponse, "description": "An error object"}}
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

CurrentState = Callable[[], ServerState]
"""Gives what requests to the loaded model share. Raises ApiError where none is loaded."""


def create_app(engine: Engine, config: ServerConfig) -> ASGIApp:
    """The server as an ASGI app. The engine stays the caller's, to be closed after the app has ended."""
    state = ServerState(engine, config)
    state.reading_ahead.begin()
    app = _with_routes(lambda: state, config, str(attribution(engine.metadata)))
    add_page(app)
    return _guarded(app, config)


def create_desktop_app(desktop: Desktop, config: ServerConfig) -> ASGIApp:
    """The same as one person's app, whose model is chosen on its page. `desktop.key` is one of the config's keys."""
    app = _with_routes(desktop.models.current, config, "")
    app.include_router(desktop_routes(desktop))
    add_page(app, is_app=True)
    return _guarded(app, config)


def _with_routes(current: CurrentState, config: ServerConfig, description: str) -> FastAPI:
    app = FastAPI(
        title="weblab-local",
        version=weblab_local.__version__,
        description=description,
        docs_url=None,
        redoc_url=None,
    )
    for kind in (RequestValidationError, HTTPException, WeblabError, Exception):
        app.add_exception_handler(kind, _error_response)
    routers = [_api(current), llama_server_routes(current, _ERRORS), ollama_routes(current)]
    routers.append(responses_routes(current, _ERRORS))
    if config.metrics:
        routers.append(_metrics(current))
    for router in routers:
        app.include_router(router, dependencies=_key_scheme(config))

    @app.get("/health", responses=_ERRORS)
    def health() -> Health:
        """Whether the server answers; needs no key."""
        return Health()

    return app


def _guarded(app: ASGIApp, config: ServerConfig) -> ASGIApp:
    guarded = Guard(app, config)
    if not config.cors_origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=config.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["Retry-After"],
    )


def _key_scheme(config: ServerConfig) -> list[Any]:
    """Says in the OpenAPI description that a key is wanted; the guard is what asks for it."""
    return [Depends(HTTPBearer(auto_error=False))] if config.api_keys else []


def _error_response(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    if isinstance(error, RequestValidationError):
        return validation_error(error.errors()).response(path)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_LEFT)  # for the log; nobody is there to read it
    return api_error(error).response(path)


def _api(current: CurrentState) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=_ERRORS)

    @router.post("/chat/completions", response_model=ChatCompletion, responses=_STREAMS)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
        """The next answer in a conversation; with `stream` as server-sent events."""
        run = await answered(request, ChatCompletionRun.prepare(current(), body))
        return await _answer(request, run, body.stream)

    @router.post("/completions", response_model=TextCompletion, responses=_STREAMS)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        """What comes after a text; with `stream` as server-sent events."""
        run = await answered(request, TextCompletionRun.prepare(current(), body))
        return await _answer(request, run, body.stream)

    @router.post("/read_ahead", status_code=204)
    async def read_ahead(body: ReadAheadRequest) -> None:
        """Compute what is typed while nobody asks anything. For a page; what comes of it is a sooner answer.

        While a model is exchanged there is nothing to read with, and nothing is.
        """
        with suppress(ApiError):
            current().reading_ahead.take(body)

    @router.get("/models")
    def models() -> ModelList:
        """The model that is loaded under each of its names, with its licence."""
        state = current()
        return ModelList(data=[_card(state, name) for name in state.names])

    @router.get("/models/{model_id:path}")
    def model(model_id: str) -> ModelCard:
        """The same by one of its names."""
        state = current()
        state.require_model(model_id)
        return _card(state, model_id if model_id in state.names else state.model_id)

    return router


def _metrics(current: CurrentState) -> APIRouter:
    router = APIRouter(responses=_ERRORS)

    @router.get("/metrics", response_model=None, responses=_TEXT)
    async def metrics() -> Response:
        """What the server has done so far, in Prometheus' text form."""
        return Response(current().metrics_text(), media_type=MEDIA_TYPE)

    return router


async def _answer(request: Request, run: ChatCompletionRun | TextCompletionRun, stream: bool) -> Any:
    """Return the whole answer, or a response that streams it; its places are free when that has ended."""
    if stream:
        return EventStream(run.stream(), run.generated, run.places)
    with run.places:
        return await answered(request, run.whole())


def _card(state: ServerState, name: str) -> ModelCard:
    engine = state.engine
    found = attribution(engine.metadata)
    return ModelCard(
        id=name,
        created=state.created,
        owned_by=found.authors or "unknown",
        context_length=engine.longest_sequence,
        max_parallel=engine.n_parallel,
        instruction_tuned=engine.has_template,
        reads_ahead=state.reading_ahead.enabled,
        license=found.licence,
        attribution=str(found),
        adapters=[AdapterCard(name=a.name, scale=a.scale, license=a.licence) for a in engine.adapters],
    )
