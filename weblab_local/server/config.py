"""What a server is told when it starts."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from weblab_local.errors import WeblabError
from weblab_local.i18n import _

DEFAULT_PORT = 8080
SHORTEST_KEY = 16


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server. WeblabError, when it is made, for those that would not be safe.

    host            address to listen on; one beyond this machine demands a key
    api_keys        any of them opens /v1; none: whoever reaches the address may ask
    cors_origins    pages from elsewhere whose scripts may ask, as scheme://host:port
    allowed_hosts   names of this machine besides its own that a Host header may hold
    queue           requests that may wait; more are told to come later
    max_body        bytes of a request's body
    timeout         seconds to compute an answer, which then ends where it is; a request waits as long for its turn
    read_ahead      compute what is typed on the page, and what every conversation begins with, while nobody asks
    aliases         names for the model beside its own
    any_model       whether every name is taken for the loaded model
    responses       how many responses of the Responses API are kept in memory
    metrics         whether what the server has done can be read under /metrics
    strict          whether fields that an answer would not depend on are refused, instead of named in it
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    queue: int = 16
    max_body: int = 1 << 20
    timeout: float = 600.0
    read_ahead: bool = True
    aliases: Sequence[str] = ()
    any_model: bool = False
    strict: bool = False
    responses: int = 64
    metrics: bool = False

    def __post_init__(self) -> None:
        if not self.api_keys and not is_loopback(self.host):
            raise WeblabError(
                _("{host} can be reached from other machines, and there is no API key.").format(host=self.host),
                _("Give one with --api-key-file, or listen on 127.0.0.1."),
            )
        if any(len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise WeblabError(
                _("An API key has at least {n} characters, all of them printable ASCII.").format(n=SHORTEST_KEY),
                _('Make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'),
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
