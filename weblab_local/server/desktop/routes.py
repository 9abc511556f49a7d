"""What the app's page asks beyond OpenAI's API: for the key, for a model, and to be counted."""

from dataclasses import dataclass, field
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from weblab_local.i18n import Language, _, use
from weblab_local.models.store import DEMO, stored_models
from weblab_local.server.desktop.instance import TICKET_PATH
from weblab_local.server.desktop.model_holder import ModelHolder
from weblab_local.server.desktop.presence import Presence, PresenceStream
from weblab_local.server.desktop.tickets import Tickets, is_this_users
from weblab_local.server.errors import ApiError

LONGEST_NAME = 4096


@dataclass(frozen=True)
class Desktop:
    """What an app's server has besides: its model, who is looking, and how they get in."""

    key: str
    models: ModelHolder
    presence: Presence
    tickets: Tickets = field(default_factory=Tickets)


class Ticket(BaseModel):
    """What is exchanged for the key, once."""

    ticket: str


class Key(BaseModel):
    """The key of the API."""

    key: str


class Chosen(BaseModel):
    """The model to load: "demo", a name in the store, or a path. `language` is the page's, for what is said of it."""

    model: str = Field(min_length=1, max_length=LONGEST_NAME)
    language: Language | None = None


class Offer(BaseModel):
    """A model that can be had by its name. `size` is in bytes."""

    name: str
    size: int


class ModelStatus(BaseModel):
    """Which model there is.

    name        the one that is loaded or being loaded, None where there is none
    share       how much of it is loaded, 0 to 1
    failure     why the last one that was asked for could not be loaded
    offers      the store's
    """

    state: Literal["none", "loading", "loaded"]
    name: str | None
    share: float
    failure: str | None
    offers: list[Offer]


def desktop_routes(desktop: Desktop) -> APIRouter:
    """The routes. Those under /v1 want the key, as all there; the guard sees to it, and to where requests come from."""
    router = APIRouter(include_in_schema=False)

    @router.post("/app/key")
    def key(body: Ticket, request: Request) -> Key:
        """The key for a ticket."""
        client, server = request.scope["client"], request.scope["server"]
        if not is_this_users(client, server):
            raise ApiError(403, _("This page belongs to another user of this machine."), code="other_user")
        if not desktop.tickets.redeem(body.ticket):
            raise ApiError(
                401, _("This address was used before. Start weblab-local app again for another."), code="invalid_ticket"
            )
        return Key(key=desktop.key)

    @router.post(TICKET_PATH)
    def ticket() -> Ticket:
        """A new ticket, for another page."""
        return Ticket(ticket=desktop.tickets.issue())

    @router.get("/v1/app/presence")
    async def presence() -> PresenceStream:
        """Nothing, for as long as a page is open."""
        return PresenceStream(desktop.presence)

    @router.get("/v1/app/model")
    def model() -> ModelStatus:
        """Which model there is, and what else there could be."""
        return _status(desktop.models)

    @router.post("/v1/app/model", status_code=202)
    def choose(body: Chosen) -> ModelStatus:
        """Begin to load a model. The program speaks the page's language from now on: it has one user."""
        if body.language is not None:
            use(body.language)
        desktop.models.choose(_bare(body.model))
        return _status(desktop.models)

    return router


def _status(models: ModelHolder) -> ModelStatus:
    loading, failure, name = models.loading, models.failure, models.name
    offers = [Offer(name=one.name, size=one.size) for one in stored_models() if one.name != DEMO]
    if loading is not None:
        return ModelStatus(state="loading", name=loading.name, share=loading.share, failure=None, offers=offers)
    state: Literal["none", "loaded"] = "none" if name is None else "loaded"
    return ModelStatus(state=state, name=name, share=float(name is not None), failure=failure, offers=offers)


def _bare(name: str) -> str:
    """A path without what copying it may have brought along: spaces, and the quotes of Windows' "Copy as path"."""
    name = name.strip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
