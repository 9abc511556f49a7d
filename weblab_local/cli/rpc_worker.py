"""`weblab-local rpc-worker`: lend this machine to a weblab-local on another one."""

import os
import sys

from weblab_local import llama_log, rpc
from weblab_local.devices import Device
from weblab_local.i18n import _


def run(host: str, port: int, threads: int | None, allow_network: bool) -> None:
    """Serve until interrupted. One line on stdout says that and where it listens; llama.cpp's own go to stderr.

    Raises WeblabError for an address beyond this machine without `allow_network`.
    """
    if not allow_network:
        rpc.require_trusted(host)
    llama_log.route()
    with os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace") as stdout:
        os.dup2(2, 1)  # llama.cpp reports its clients with printf

        def listening(address: str, devices: list[Device]) -> None:
            offered = ", ".join(f"{device.name} {device.total / 2**30:.1f} GiB" for device in devices)
            message = _("listening on {address} ({offered})")
            print(message.format(address=address, offered=offered), file=stdout, flush=True)

        rpc.serve(host, port, threads, listening)
