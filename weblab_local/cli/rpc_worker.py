"""`weblab-local rpc-worker`: lend this machine to a weblab-local on another one."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from weblab_local.cli.options import Threads
from weblab_local.cli.signatures import command
from weblab_local.i18n import _, n_
from weblab_local.sizes import memory_size

if TYPE_CHECKING:
    from weblab_local.machine.devices import Device


@command
def rpc_worker(
    *,
    host: Annotated[str, typer.Option(metavar=n_("ADDRESS"), help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 50052,
    threads: Threads = None,
    allow_network: Annotated[
        bool,
        typer.Option("--allow-network", help="Accept an address that other machines can reach. Trusted networks only."),
    ] = False,
) -> None:
    """Let weblab-local on another machine (its option --rpc) compute on this one.

    The protocol has neither passwords nor encryption: use it in trusted networks only. If the worker dies, the process
    of weblab-local on the other machine ends with it.
    """
    run(host, port, threads, allow_network)


def run(host: str, port: int, threads: int | None, allow_network: bool) -> None:
    """Serve until interrupted. One line on stdout says that and where it listens; llama.cpp's own go to stderr.

    Raises WeblabError for an address beyond this machine without `allow_network`.
    """
    from weblab_local.llama import log as llama_log
    from weblab_local.machine import rpc

    if not allow_network:
        rpc.require_trusted(host)
    llama_log.route()
    with os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace") as stdout:
        os.dup2(2, 1)  # llama.cpp reports its clients with printf

        def listening(address: str, devices: "list[Device]") -> None:
            offered = ", ".join(f"{device.name} {memory_size(device.total)}" for device in devices)
            message = _("listening on {address} ({offered})")
            print(message.format(address=address, offered=offered), file=stdout, flush=True)

        rpc.serve(host, port, threads, listening)
