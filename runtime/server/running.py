"""Run an application on a port until a signal ends it. Knows no endpoint."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sdrpn.errors import BadInput

__all__ = ["listen", "run_app"]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port; port 0: any free one. Raises BadInput where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise BadInput(f"host {host} cannot be used ({error}); expected an address of this machine") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
        listening.set_inheritable(True)
    except OSError as error:
        listening.close()
        raise BadInput(
            f"port {port} of {host} cannot be listened on ({error.strerror}); choose another", options=("port",)
        ) from error
    return listening


def run_app(app: FastAPI, listening: socket.socket, started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that run are finished first.

    Args: started: called with the address when requests are accepted
    """
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")
    _Server(config, lambda: started(url)).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and report it."""
        await super().startup(sockets)
        self._started()
