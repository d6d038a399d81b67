"""Run an application on a port until a signal ends it. Knows no endpoint."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sdrpn.errors import BadInput
from sdrpn.host.service_manager import NO_MANAGER, ServiceManager

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


def run_app(
    app: FastAPI,
    listening: socket.socket,
    started: Callable[[str], None],
    *,
    manager: ServiceManager = NO_MANAGER,
    works: Callable[[], bool] = lambda: True,
) -> None:
    """Serve until SIGINT or SIGTERM; requests that run are finished first.

    Args:
        started: called with the address when requests are accepted
        manager: of the service that this process is; it is notified of the start, the end, and signs of life
        works: whether the model makes progress; while it does not, the watchdog of `manager` gets no sign of life
    """
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")

    def report() -> None:
        started(url)
        manager.ready(f"listening on {url}")

    _Server(config, report, manager, works).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], manager: ServiceManager, works: Callable[[], bool]
    ) -> None:
        super().__init__(config)
        self._started, self._manager, self._works = started, manager, works
        self._pulse: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and report it."""
        await super().startup(sockets)
        self._started()
        if self._manager.pulse_s is not None:
            self._pulse = asyncio.create_task(self._show_life(self._manager.pulse_s))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and report it. Signs of life go on while requests are finished."""
        self._manager.stopping()
        await super().shutdown(sockets)
        if self._pulse is not None:
            self._pulse.cancel()

    async def _show_life(self, pulse_s: float) -> None:
        """From the event loop, so that one that hangs shows none."""
        while True:
            if self._works():
                self._manager.alive()
            await asyncio.sleep(pulse_s)
