"""llama.cpp's RPC backend: workers that take layers of a model over the network, and being one.

The protocol has neither passwords nor encryption, and whoever reaches a worker can make it compute and allocate: it
belongs in trusted networks only. llama.cpp ends the process (GGML_ABORT) when a worker cannot be reached, speaks
another version or dies, so workers are probed before llama.cpp meets them; against a worker that dies later there is
nothing to be done from here. A worker serves one client at a time.
"""

import ipaddress
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from weblab_local.errors import WeblabError, WorkerError
from weblab_local.i18n import _
from weblab_local.llama import backends, compatibility, ggml
from weblab_local.llama.ggml import POINTER, SIZE, TEXT
from weblab_local.machine.devices import Device, list_devices, physical_cores

DEFAULT_PORT = 50052
"""A worker of the same major and no newer minor version is accepted, as llama.cpp does."""

_HELLO, _CAPS_SIZE = 14, 24
_HELLO_REQUEST = struct.pack(f"<BQ{_CAPS_SIZE}x", _HELLO, _CAPS_SIZE)
_HELLO_RESPONSE = struct.Struct(f"<QBBBx{_CAPS_SIZE}x")
"""`rpc_msg_hello_req` and `rpc_msg_hello_rsp` of ggml-rpc.cpp with their sizes; no capability means plain TCP."""

_registered: set[str] = set()


class _OtherProtocol(WorkerError):
    """A worker of another version."""


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """`host:port`, or `host` with the default port. WorkerError for anything else; llama.cpp knows no IPv6."""
    host, colon, port = endpoint.strip().partition(":")
    if not host or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise WorkerError(
            _("{address!r} is no address of an RPC worker.").format(address=endpoint), _("Write it as host:port.")
        )
    return host, int(port) if colon else DEFAULT_PORT


def probe(endpoint: str, timeout: float = 5.0) -> None:
    """Say hello to a worker as llama.cpp does, giving up after `timeout` seconds. WorkerError when it would fail."""
    host, port = parse_endpoint(endpoint)
    remedy = _("Start it there with `weblab-local rpc-worker --port {port}`, or leave it out of --rpc.").format(
        port=port
    )
    try:
        with socket.create_connection((_resolve(host), port), timeout) as connection:
            connection.sendall(_HELLO_REQUEST)
            answer = _receive(connection, _HELLO_RESPONSE.size)
    except TimeoutError:
        raise WorkerError(
            _("The RPC worker {worker} does not answer within {seconds:g} seconds.").format(
                worker=f"{host}:{port}", seconds=timeout
            ),
            _("It may be busy with another client (a worker serves one at a time), or something else listens there."),
        ) from None
    except OSError as error:
        raise WorkerError(
            _("The RPC worker {worker} cannot be reached: {reason}.").format(
                worker=f"{host}:{port}", reason=error.strerror or error
            ),
            remedy,
        ) from None
    size, major, minor, patch = _HELLO_RESPONSE.unpack(answer.ljust(_HELLO_RESPONSE.size, b"\0"))
    if len(answer) < _HELLO_RESPONSE.size or size != _HELLO_RESPONSE.size - 8:
        raise WorkerError(_("What listens on {address} is no RPC worker.").format(address=f"{host}:{port}"), remedy)
    ours = _protocol()
    if major != ours[0] or minor > ours[1]:
        raise _OtherProtocol(
            _("The RPC worker {worker} speaks version {theirs} of the protocol, this program {ours}.").format(
                worker=f"{host}:{port}", theirs=f"{major}.{minor}.{patch}", ours="{}.{}".format(*ours)
            ),
            _("Install the same version of weblab-local on both sides."),
        )


def register(endpoints: Sequence[str]) -> list[str]:
    """Make the workers' devices known to ggml, in this order; returns the addresses that `list_devices` wants.

    All are probed before the first is registered, so after a WorkerError none is. There is no way to unregister.
    """
    add_server = _function("ggml_backend_rpc_add_server", POINTER, TEXT)
    addresses = list(dict.fromkeys("{}:{}".format(*parse_endpoint(endpoint)) for endpoint in endpoints))
    for address in addresses:
        probe(address)
    for address in addresses:
        if address in _registered:
            continue
        registry = add_server(address.encode())
        if not registry:
            raise WorkerError(_("The RPC worker {worker} offers no device.").format(worker=address))
        ggml.function("ggml_backend_register", None, POINTER)(registry)
        _registered.add(address)
    return addresses


def serve(host: str, port: int, n_threads: int | None, on_listening: Callable[[str, list[Device]], None]) -> None:
    """Be a worker until the process ends: offer this machine's GPUs, or its CPU when there is none.

    `on_listening` gets the address, with the port that was chosen when `port` is 0, and what is offered, once clients
    can connect. llama.cpp prints to the process's stdout here. WorkerError when the address cannot be listened on.
    """
    start_server = _function("ggml_backend_rpc_start_server", None, TEXT, TEXT, SIZE, SIZE, POINTER)
    host = _resolve(host)
    port = _free_port(host, port)
    found = list_devices()
    offered = [device for device in found if device.kind in ("gpu", "igpu")] or [
        device for device in found if device.kind == "cpu"
    ]
    handles = (POINTER * len(offered))(*(device.handle for device in offered))
    arguments = (f"{host}:{port}".encode(), None, n_threads or physical_cores(), len(offered), handles)
    server = threading.Thread(target=start_server, args=arguments, daemon=True)
    server.start()
    address = f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    while server.is_alive():
        try:
            probe(address)
        except _OtherProtocol:
            raise
        except WorkerError:
            server.join(0.02)
        else:
            on_listening(f"{host}:{port}", offered)
            break
    while server.is_alive():
        server.join(0.5)
    raise WorkerError(
        _("The RPC worker on {address} has stopped.").format(address=f"{host}:{port}"),
        _("llama.cpp's reason is above."),
    )


def require_trusted(host: str) -> None:
    """Raise WeblabError unless `host` is this machine's loopback address."""
    if not ipaddress.ip_address(_resolve(host)).is_loopback:
        raise WeblabError(
            _("{host} can be reached by other machines, and the RPC protocol has no password.").format(host=host),
            _("In a network that you trust, repeat with --allow-network."),
        )


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise WorkerError(
            _("There is no address for {host}: {reason}.").format(host=host, reason=error.strerror or error)
        ) from None


def _free_port(host: str, port: int) -> int:
    with socket.socket() as listener:
        if sys.platform != "win32":  # there this option lets two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise WorkerError(
                _("Cannot listen on {address}: {reason}.").format(
                    address=f"{host}:{port}", reason=error.strerror or error
                ),
                _("Choose another --port; 0 takes a free one."),
            ) from None
        return int(listener.getsockname()[1])


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def _protocol() -> tuple[int, int]:
    """Major and minor version of the protocol. WorkerError where it is not known: a client that meets another ends."""
    known = compatibility.rpc_protocol()
    if known is None:
        raise WorkerError(
            _("Which version of the RPC protocol this llama.cpp speaks is not known."),
            compatibility.remedy(),
        )
    return known


def _function(name: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    """A function of the RPC backend. WorkerError when llama.cpp was built without it, or its protocol is not known."""
    backends.start()
    _protocol()
    registry = ggml.function("ggml_backend_reg_by_name", POINTER, TEXT)(b"RPC")
    found = ggml.backend_function(registry, name, restype, *argtypes) if registry else None
    if found is None:
        raise WorkerError(
            _("This llama.cpp was built without RPC."),
            _("Install again with `make install`, or with CMAKE_ARGS=-DGGML_RPC=on."),
        )
    return found
