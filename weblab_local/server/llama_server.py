"""What programs written for llama.cpp's server ask besides OpenAI's API: a text's tokens, and what runs here."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

import weblab_local
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.llama.gguf_header import read_arrays
from weblab_local.server.connection import answered
from weblab_local.server.fields import WHOLE, Body
from weblab_local.server.state import ServerState

T = TypeVar("T")

_Id = Annotated[int, WHOLE]


class TokenizeRequest(Body):
    """A text, or pieces of one that may be token ids already."""

    content: str | Annotated[list[str | _Id], Field(fail_fast=True)]
    add_special: bool = Field(False, description="Accepted; this kind of model has none to add.")
    with_pieces: bool = Field(False, description="Give each token's text too, or its bytes where they are no text.")


class Piece(BaseModel):
    """A token, and what it stands for."""

    id: int
    piece: str | list[int]


class Tokens(BaseModel):
    """The tokens of a text."""

    tokens: list[int] | list[Piece]


class DetokenizeRequest(Body):
    """Token ids."""

    tokens: Annotated[list[_Id], Field(fail_fast=True)]


class Content(BaseModel):
    """The text of tokens."""

    content: str


class GenerationSettings(BaseModel):
    """What a request without fields gets. `n_ctx`: tokens of a prompt and its answer together."""

    n_ctx: int
    params: dict[str, float]


class Modalities(BaseModel):
    """What the model reads besides text."""

    vision: bool = False
    audio: bool = False


class Props(BaseModel):
    """What runs here. `model_path` is the file's name: where it lies is nobody's business."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    modalities: Modalities
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str


def llama_server_routes(current: Callable[[], ServerState], responses: Any) -> APIRouter:
    """The routes, with `responses` for what goes wrong."""
    router = APIRouter(responses=responses)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> Tokens:
        """The tokens of a text, none of them special."""
        state = current()
        state.ignored(body)
        pieces = [body.content] if isinstance(body.content, str) else body.content
        return await _prepared(state, request, lambda: _tokens(state.engine, pieces, with_pieces=body.with_pieces))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request) -> Content:
        """The text of tokens; a character that is not whole becomes U+FFFD."""
        state = current()
        state.ignored(body)
        return await _prepared(state, request, lambda: Content(content=_text(state.engine, body.tokens)))

    @router.get("/props")
    def props() -> Props:
        """What runs here."""
        return _props(current().engine)

    return router


async def _prepared(state: ServerState, request: Request, work: Callable[[], T]) -> T:
    """What `work` gives, in a thread, as long as the client is there; it takes the place of one answer meanwhile."""
    result, places = await answered(request, state.prepare(1, work))
    places.release_all()
    return result


def _tokens(engine: Engine, pieces: Sequence[str | int], *, with_pieces: bool) -> Tokens:
    ids = [
        token
        for piece in pieces
        for token in (engine.tokenize(piece) if isinstance(piece, str) else engine.check_ids([piece]))
    ]
    return Tokens(tokens=[Piece(id=token, piece=_piece(engine.piece(token))) for token in ids] if with_pieces else ids)


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def _text(engine: Engine, ids: Sequence[int]) -> str:
    return b"".join(engine.piece(token) for token in ids).decode("utf-8", errors="replace")


@lru_cache(maxsize=1)
def _names_of_tokens(path: Path) -> Sequence[str]:
    (names,) = read_arrays(path, "tokenizer.ggml.tokens")
    return [name.decode(errors="replace") for name in names]


def _props(engine: Engine) -> Props:
    usual = SamplingParams()
    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")

    names_of_tokens = _names_of_tokens(engine.path)

    def special(key: str) -> str:
        token = engine.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return "" if token is None else names_of_tokens[int(token)]

    return Props(
        default_generation_settings=GenerationSettings(
            n_ctx=engine.longest_sequence, params={name: getattr(usual, name) for name in names}
        ),
        total_slots=engine.n_parallel,
        model_alias=engine.name,
        model_path=engine.path.name.encode(errors="replace").decode(),
        modalities=Modalities(),
        chat_template=str(engine.metadata.get("tokenizer.chat_template", "")),
        bos_token=special("bos"),
        eos_token=special("eos"),
        build_info=f"weblab-local {weblab_local.__version__}",
    )
