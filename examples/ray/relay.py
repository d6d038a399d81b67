"""Pass a request to an ASGI application that runs in another process, and its reply back. Knows neither Ray nor models.

A request travels as a `Head` and its body, a reply as its `ReplyHead` and then pieces of its body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

__all__ = ["Head", "ReplyHead", "head_of", "replies", "whole_reply"]

Headers = tuple[tuple[bytes, bytes], ...]
# What a client must not decide, or what belongs to the connection to the door.
_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"content-length"}
_PIECES_AHEAD = 16  # of a reply that nobody has taken yet
_ENDS_WITHIN_S = 30.0  # after the client is gone


@dataclass(frozen=True)
class Head:
    """A request without its body; entries as ASGI has them."""

    method: str
    path: str
    query: bytes
    headers: Headers
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None


@dataclass(frozen=True)
class ReplyHead:
    """The beginning of a reply."""

    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        """Whether its body is worth passing on before it is complete."""
        return any(name.lower() == b"content-type" and b"event-stream" in value for name, value in self.headers)


def head_of(scope: dict[str, Any]) -> Head:
    """A request as it came to the door. The body is passed on whole: its length is known there."""
    headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"] if name.lower() not in _HOP)
    client, server = scope.get("client"), scope.get("server")
    return Head(
        scope["method"],
        scope["path"],
        bytes(scope.get("query_string", b"")),
        headers,
        None if client is None else tuple(client),
        None if server is None else tuple(server),
    )


async def replies(app: Any, head: Head, body: bytes) -> AsyncGenerator[ReplyHead | bytes, None]:
    """The reply of an application, as it comes. Closing the generator tells the application that the client is gone."""
    pieces: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_PIECES_AHEAD)
    gone, given = asyncio.Event(), False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await pieces.put(message)

    async def run() -> None:
        try:
            await app(_scope(head, len(body)), receive, send)
        finally:
            await pieces.put(None)

    task = asyncio.ensure_future(run())
    try:
        while (message := await pieces.get()) is not None:
            if message["type"] == "http.response.start":
                yield ReplyHead(message["status"], tuple(tuple(header) for header in message.get("headers", ())))
            elif message.get("body"):
                yield message["body"]
        await task
    finally:
        gone.set()
        until = time.monotonic() + _ENDS_WITHIN_S
        while not task.done():  # what it still sends goes nowhere, and must not block it
            while not pieces.empty():
                pieces.get_nowait()
            await asyncio.wait({task}, timeout=0.05)
            if time.monotonic() > until:
                task.cancel()


async def whole_reply(app: Any, head: Head, body: bytes) -> tuple[ReplyHead, bytes]:
    """The complete reply of an application."""
    first, parts = None, []
    async for piece in replies(app, head, body):
        if isinstance(piece, ReplyHead):
            first = piece
        else:
            parts.append(piece)
    if first is None:
        raise RuntimeError(f"{head.method} {head.path} has no reply")
    return first, b"".join(parts)


def _scope(head: Head, length: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": head.method,
        "scheme": "http",
        "path": head.path,
        "raw_path": head.path.encode(),
        "query_string": head.query,
        "root_path": "",
        "headers": [*head.headers, (b"content-length", str(length).encode())],
        "client": head.client,
        "server": head.server,
    }
