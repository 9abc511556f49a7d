"""Responses that can be asked for again and gone on with, in memory and no more than so many."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weblab_local.i18n import _
from weblab_local.server.errors import ApiError
from weblab_local.server.messages import ChatMessage


@dataclass(frozen=True)
class Stored:
    """A response, and the conversation up to its end, instructions left out."""

    response: dict[str, Any]
    messages: Sequence[ChatMessage]


class StoredResponses:
    """The newest ones. All calls come from the event loop's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def keep(self, stored: Stored) -> None:
        """Take one more; the oldest goes when there are too many."""
        self._stored[stored.response["id"]] = stored
        while len(self._stored) > self._most:
            self._stored.popitem(last=False)

    def find(self, response_id: str, param: str | None = None) -> Stored:
        """Return a stored one. Raises ApiError 404 where it is not, or not any more; `param` is the field that asks."""
        try:
            return self._stored[response_id]
        except KeyError:
            raise ApiError(
                404,
                _("The response {id} is not stored here, or not any more.").format(id=response_id),
                code="response_not_found",
                param=param,
            ) from None

    def delete(self, response_id: str) -> None:
        """Forget one. Raises ApiError 404 where it is not stored."""
        self.find(response_id)
        del self._stored[response_id]
