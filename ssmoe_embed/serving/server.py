"""Running the application on an address."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, so that an address that cannot be had is known before a model is loaded.

    Args:
        host: Name or address of this machine.
        port: 0 for any that is free.

    Raises:
        ValueError: The address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"The server cannot listen on {host} port {port} ({error}); choose another with --host and --port (0: any free)."
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The address to type into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves until it is told to stop, by a signal or by `should_exit`, then finishes the answers in progress."""

    def __init__(self, app: FastAPI, *, ready: Callable[[], None] | None = None, log_level: str = "warning") -> None:
        """Bind an application; `run(sockets=[listener])` begins."""
        super().__init__(uvicorn.Config(app, log_level=log_level, timeout_graceful_shutdown=10))
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()
