"""How the app's page gets the key: the browser is started with an address that holds a ticket, good for one exchange.

Every user of a Linux machine can read what any program was started with. So a ticket alone is not enough: the
connection has to be one of this user's, which Linux tells as well.
"""

import os
import secrets
import socket
import sys
from pathlib import Path

Address = tuple[str, int]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


class Tickets:
    """Those that were issued and not redeemed yet."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def issue(self) -> str:
        """Return a new one."""
        ticket = secrets.token_urlsafe(32)
        self._open.add(ticket)
        return ticket

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket was good; it is not any more."""
        try:
            self._open.remove(ticket)
        except KeyError:
            return False
        return True


def is_this_users(client: Address, server: Address) -> bool:
    """Whether a connection over loopback, IPv4, is from a process of this user, or of root, who may read all anyway.

    On systems other than Linux it is not known, and this is true: there, other users cannot read a program's arguments.
    """
    wanted = (_hexadecimal(client), _hexadecimal(server))
    try:
        rows = [row.split() for table in _TABLES if table.exists() for row in table.read_text().splitlines()[1:]]
    except OSError:  # a sandbox that hides them
        rows = []
    if not rows:
        return True
    users = {
        int(user)
        for _number, local, remote, state, _queues, _timer, _retransmitted, user, *_ in rows
        if state == _ESTABLISHED and (local[-13:], remote[-13:]) == wanted  # the end is an IPv4 address's in IPv6, too
    }
    return bool(users) and users <= {os.getuid(), 0}


def _hexadecimal(address: Address) -> str:
    """An address as the tables have it: a number in the machine's byte order, and the port."""
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
