"""Run an application on a port until a signal ends it. Knows no endpoint.

SIGINT and SIGTERM let nobody else in and finish what runs; a second one ends it at once. SIGHUP calls for a reload. A
service manager is notified of the start, the end, and as long as work goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdrpn.errors import BadInput
from sdrpn.host.service_manager import NO_MANAGER, ServiceManager
from sdrpn.runtime.server.watchdog import Watchdog

__all__ = ["Running", "Watch", "listen", "run_app"]

_BACKLOG = 1024


@dataclass(frozen=True)
class Watch:
    """What a server does beside answering.

    started: called with the address when requests are accepted. stopping: called when nobody else is to be let in.
    reload: on SIGHUP. works: whether the model makes progress; while it does not, the watchdog of `manager` gets no
    sign of life. manager: of the service that this process is; it is notified of the start, the end, and signs of life.
    watchdog: ends the process where work is stuck; None: nothing does.
    """

    started: Callable[[str], None] = lambda url: None
    stopping: Callable[[], None] = lambda: None
    reload: Callable[[], Awaitable[Any]] | None = None
    works: Callable[[], bool] = lambda: True
    manager: ServiceManager = NO_MANAGER
    watchdog: Watchdog | None = None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port; port 0: any free one. Raises BadInput where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise BadInput(
            f"host {host} cannot be used ({error}); expected an address of this machine", options=("host",)
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise BadInput(
            f"port {port} of {host} cannot be listened on ({error.strerror}); choose another", options=("port", "host")
        ) from error
    return listening


def run_app(app: FastAPI, listening: socket.socket, watch: Watch | None = None, idle_timeout_s: float = 10.0) -> None:
    """Serve until SIGINT or SIGTERM; requests that run are finished first.

    Args: idle_timeout_s: of a connection without a whole request
    """
    Running(app, listening, watch or Watch(), idle_timeout_s).run(sockets=[listening])


class Running(uvicorn.Server):
    """A server in progress."""

    def __init__(self, app: FastAPI, listening: socket.socket, watch: Watch, idle_timeout_s: float) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(idle_timeout_s)),
        )
        super().__init__(config)
        self.server_state.idle_timeout_s = idle_timeout_s  # type: ignore[attr-defined]
        self._watch = watch
        self._tasks: set[asyncio.Future[Any]] = set()
        host, port = listening.getsockname()[:2]
        self._url = f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"
        app.state.connections = lambda: len(self.server_state.connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and report it."""
        await super().startup(sockets)
        self._watch.started(self._url)
        self._watch.manager.ready(f"listening on {self._url}")
        if self._watch.manager.pulse_s is not None:
            self._start(self._show_life(self._watch.manager.pulse_s))
        if self._watch.watchdog is not None:
            self._start(self._show_watchdog(self._watch.watchdog))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and report it. Signs of life go on while requests are finished."""
        self._watch.manager.stopping()
        self._watch.stopping()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but an end that was asked for is not raised once more; and SIGHUP reloads."""
        loop = asyncio.get_running_loop()

        def reload(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._reload)

        before: Any = None
        with super().capture_signals():
            try:
                before = signal.signal(signal.SIGHUP, reload) if self._watch.reload is not None else None
            except ValueError:  # not the main thread
                before = None
            try:
                yield
            finally:
                self._captured_signals.clear()
                if before is not None:
                    signal.signal(signal.SIGHUP, before)

    def _reload(self) -> None:
        assert self._watch.reload is not None
        self._start(self._watch.reload())

    async def _show_life(self, pulse_s: float) -> None:
        """From the event loop, so that one that hangs shows none."""
        while True:
            if self._watch.works():
                self._watch.manager.alive()
            await asyncio.sleep(pulse_s)

    async def _show_watchdog(self, watchdog: Watchdog) -> None:
        while True:
            watchdog.alive()
            await asyncio.sleep(watchdog.pulse_s)

    def _start(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # reported where it was raised


class _Connection(H11Protocol):
    """A connection that does not wait for ever for the headers of a request."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio calls it."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it. Some bytes of a request do not begin the time again."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or not self._is_idle():
            self._stop_waiting()
        elif self._waits is None:
            self._wait()

    def on_response_complete(self) -> None:
        """As uvicorn calls it."""
        super().on_response_complete()
        if self._waits is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        seconds: float = getattr(self.server_state, "idle_timeout_s", 10.0)
        self._waits = self.loop.call_later(seconds, self._close_if_idle)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _close_if_idle(self) -> None:
        self._waits = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()
