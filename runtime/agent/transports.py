"""How the tools' server is reached: standard input and output, or HTTP. Knows no tools."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sdrpn.errors import BadInput
from sdrpn.host.api_keys import ApiKeys

__all__ = ["HttpAddress", "http_app", "serve_http", "serve_stdio"]

PATH = "/mcp"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_READ_BYTES = 1 << 16
_MOST_LINE_BYTES = 4 << 20  # of a message on standard input, as the library limits HTTP bodies


@dataclass(frozen=True)
class HttpAddress:
    """Where to listen. port: 0: any free one. keys: what clients must send; None: nothing, only on loopback.

    Raises: BadInput for an address that others can reach, without keys
    """

    host: str
    port: int
    keys: ApiKeys | None = None

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and self.keys is None:
            raise BadInput(
                f"the host {self.host} can be reached from other machines, and there is no API key; listen on "
                f"{LOOPBACK[0]}, or name a file with a key",
                options=("api_key_file FILE",),
            )


def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve one client on standard input and output, until it closes the input."""
    asyncio.run(_serve_stdio(server))


def serve_http(server: MCPServer[Any], address: HttpAddress, ready: Callable[[str], None]) -> None:
    """Serve clients at http://HOST:PORT/mcp (streamable HTTP) until a signal ends it.

    Args: ready: called with that address once connections are accepted
    Raises: BadInput where the address is taken or not of this machine
    """
    with _listening(address) as listening:
        host = f"[{address.host}]" if ":" in address.host else address.host
        config = uvicorn.Config(
            http_app(server, address), log_level="warning", access_log=False, timeout_graceful_shutdown=5
        )
        ready(f"http://{host}:{listening.getsockname()[1]}{PATH}")
        uvicorn.Server(config).run(sockets=[listening])


def http_app(server: MCPServer[Any], address: HttpAddress) -> ASGIApp:
    """The ASGI application: on loopback, Host and Origin headers must name it, so that no web page reaches it."""
    security = None if address.host in LOOPBACK else TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app: ASGIApp = server.streamable_http_app(streamable_http_path=PATH, host=address.host, transport_security=security)
    return app if address.keys is None else _KeyCheck(app, address.keys)


class _KeyCheck:
    """An ASGI application that answers 401 where the key is missing or wrong."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if not self._keys.accept_header(headers.get(b"authorization", b"").decode("latin-1")):
                refused = PlainTextResponse(
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
                return await refused(scope, receive, send)
        return await self._app(scope, receive, send)


def _listening(address: HttpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=128)
    except OSError as error:
        raise BadInput(
            f"cannot listen on {address.host} port {address.port} ({error.strerror or error}); choose another port"
        ) from error


async def _serve_stdio(server: MCPServer[Any]) -> None:
    # The library would read in a thread that a signal could not end, and only its inner server takes other lines.
    lines: Any = _input_lines()  # only iterated there
    async with stdio_server(stdin=lines) as (incoming, outgoing):
        inner = server._lowlevel_server
        await inner.run(incoming, outgoing, inner.create_initialization_options())


async def _input_lines() -> AsyncIterator[str]:
    """Lines of standard input, read by a thread that ends with the process. A line above the limit ends the input."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def read(descriptor: int) -> None:
        rest = b""
        with suppress(RuntimeError):  # the loop was closed before the input
            while len(rest) <= _MOST_LINE_BYTES and (data := os.read(descriptor, _READ_BYTES)):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    loop.call_soon_threadsafe(lines.put_nowait, line.decode("utf-8", "replace"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, args=(os.dup(0),), name="sdrpn stdin", daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line
