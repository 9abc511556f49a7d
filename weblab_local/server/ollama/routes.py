"""The routes of Ollama's API. What would change its store is refused: there is one model, and it is loaded."""

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders

from weblab_local.i18n import _
from weblab_local.models.attribution import attribution
from weblab_local.server.chat_completions import ChatCompletionRun
from weblab_local.server.completion_run import CompletionRun
from weblab_local.server.completions import TextCompletionRun
from weblab_local.server.connection import LineStream, answered
from weblab_local.server.errors import ApiError, validation_error
from weblab_local.server.ollama.answers import OllamaAnswer, Shape, as_message, as_response, instant, loaded
from weblab_local.server.ollama.bodies import LATEST, ModelName, OllamaChat, OllamaPrompt
from weblab_local.server.request_bodies import ChatCompletionRequest
from weblab_local.server.state import ServerState

OLLAMA_VERSION = "0.12.0"
"""The version of Ollama whose form this is; programs look whether it is recent enough."""

STORE = ("create", "copy", "push", "delete", "blobs/{digest}")
"""What changes Ollama's store."""


class OllamaError(BaseModel):
    """The body of every response that is not 2xx."""

    error: str


class Version(BaseModel):
    """Ollama's version."""

    version: str


class AnyContentType(APIRoute):
    """Reads a body as JSON whatever its Content-Type says, as Ollama does: curl's -d says a form, litellm nothing.

    A page of another site needs no preflight for such a request; its Origin is what it is refused for.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            MutableHeaders(scope=request.scope)["Content-Type"] = "application/json"
            return await handler(Request(request.scope, request.receive))

        return handled


_ERRORS: Any = {"default": {"model": OllamaError, "description": "What went wrong"}}
_LINES: Any = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


def ollama_routes(current: Callable[[], ServerState]) -> APIRouter:
    """The routes under /api."""
    router = APIRouter(prefix="/api", responses=_ERRORS, route_class=AnyContentType)

    @router.post("/chat", response_model=None, responses=_LINES)
    async def chat(body: OllamaChat, request: Request) -> Any:
        """The next answer in a conversation, as lines of JSON unless `stream` is false."""
        return await _answered(current(), body, request, as_message, asks=bool(body.messages))

    @router.post("/generate", response_model=None, responses=_LINES)
    async def generate(body: OllamaPrompt, request: Request) -> Any:
        """The answer to a question, as lines of JSON unless `stream` is false."""
        return await _answered(current(), body, request, as_response, asks=bool(body.prompt or body.system))

    @router.get("/tags", response_model=None)
    def tags() -> dict[str, Any]:
        """The loaded model under each of its names."""
        return {"models": _models(current())}

    @router.get("/ps", response_model=None)
    def running() -> dict[str, Any]:
        """The same: it is always loaded."""
        state = current()
        more = {"size_vram": 0, "context_length": state.engine.longest_sequence, "expires_at": instant(2**33)}
        return {"models": [model | more for model in _models(state)]}

    @router.post("/show", response_model=None)
    def show(body: ModelName) -> dict[str, Any]:
        """What there is to know of the model."""
        state = current()
        state.ignored(body)
        state.require_model(body.asked or None)
        return _shown(state)

    @router.get("/version")
    def version() -> Version:
        """The version of Ollama whose form this is."""
        return Version(version=OLLAMA_VERSION)

    @router.post("/pull", response_model=None)
    def pull(body: ModelName) -> dict[str, Any]:
        """Nothing to do for the model that is loaded; no other can be had."""
        current().require_model(body.asked or None)
        return {"status": "success"}

    for path in STORE:
        router.add_api_route(f"/{path}", _refuse, methods=["POST", "DELETE"], include_in_schema=False)
    return router


def _refuse() -> None:
    raise ApiError(403, _("Models cannot be changed from here. Use weblab-local models."), code="read_only")


async def _answered(
    state: ServerState, body: OllamaChat | OllamaPrompt, request: Request, shape: Shape, *, asks: bool
) -> Any:
    """The answer, whole or as a stream; its places are free when that has ended."""
    name = body.model or state.model_id + LATEST
    if not asks:
        state.require_model(name.removesuffix(LATEST))
        return loaded(name, shape(""))
    run: CompletionRun = await answered(request, _prepared(state, body))
    answer = OllamaAnswer(run, name, shape)
    if body.stream:
        return LineStream(answer.stream(), run.generated, run.places)
    with run.places:
        return await answered(request, answer.whole())


async def _prepared(state: ServerState, body: OllamaChat | OllamaPrompt) -> CompletionRun:
    try:
        asked = body.request()
    except ValidationError as error:
        raise validation_error(error.errors()) from None
    if isinstance(asked, ChatCompletionRequest):
        return await ChatCompletionRun.prepare(state, asked, body)
    return await TextCompletionRun.prepare(state, asked, body)


def _details(state: ServerState) -> dict[str, Any]:
    architecture = str(state.engine.metadata["general.architecture"])
    return {
        "parent_model": "",
        "format": "gguf",
        "family": architecture,
        "families": [architecture],
        "parameter_size": str(state.engine.metadata.get("general.size_label", "")),
        "quantization_level": state.quantization,
    }


def _models(state: ServerState) -> list[dict[str, Any]]:
    file = state.engine.path.stat()
    return [
        {
            "name": name + LATEST,
            "model": name + LATEST,
            "modified_at": instant(file.st_mtime),
            "size": file.st_size,
            "digest": hashlib.sha256(f"{state.model_id} {file.st_size} {file.st_mtime_ns}".encode()).hexdigest(),
            "details": _details(state),
        }
        for name in state.names
    ]


def _shown(state: ServerState) -> dict[str, Any]:
    engine = state.engine
    found = attribution(engine.metadata)
    return {
        "modelfile": "",
        "parameters": "",
        "template": str(engine.metadata.get("tokenizer.chat_template", "")),
        "license": f"{found.licence}\n{found}",
        "modified_at": instant(engine.path.stat().st_mtime),
        "details": _details(state),
        "model_info": {key: value for key, value in engine.metadata.items() if not key.startswith("tokenizer.")},
        "capabilities": ["completion"],
    }
