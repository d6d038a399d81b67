"""What belongs to one connection: work that ends when the client goes away, and events sent as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from sdrpn.runtime.server.faults import Fault, fault_from_error, json_bytes

__all__ = ["ClientGone", "EventStream", "TimeLimit", "first_of", "unless_gone"]

Result = TypeVar("Result")
_SEND_TIMEOUT_S = 30.0  # of a client that does not read


class ClientGone(Exception):
    """Nobody waits for the reply any more."""


@dataclass(frozen=True)
class TimeLimit:
    """How long a request may take, and with which status it is ended: 408 if its client said so, else 504."""

    seconds: float
    status: int = 504

    def passed(self) -> Fault:
        """What the client gets."""
        message = f"the answer was not complete in time, and was ended after {self.seconds:g} s"
        return Fault(self.status, message, "timeout")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result], limit: TimeLimit) -> Result:
    """The result of some work, which is cancelled where the client goes away, or the time is over.

    Raises: ClientGone, or what the limit says
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=limit.seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if gone.done() else limit.passed()
    finally:
        gone.cancel()
        await _ended(task)


class EventStream(Response):
    """Server-sent events, each a JSON object. The client's going away ends the source."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[dict[str, Any], None],
        first: dict[str, Any],
        deadline: float,
        limit: TimeLimit,
        end: bytes | None = b"[DONE]",
    ) -> None:
        """Args:
        events: the source, closed at the end
        first: was taken from it already, so that an error before it is no stream
        deadline: of the event loop's clock; it is that of `limit`
        end: a last event; None: there is none
        """
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events, self._first, self._deadline, self._last = events, first, deadline, end
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        task, gone = asyncio.ensure_future(self._sent(send)), asyncio.ensure_future(_gone(receive))
        try:
            left_s = self._deadline - asyncio.get_running_loop().time()
            await asyncio.wait({task, gone}, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not gone.done():
                await _ended(task)
                await self._end(send, self._limit.passed())
            elif not task.done():
                raise ClientGone
            else:
                task.result()
        finally:
            gone.cancel()
            await _ended(task)
            await self._events.aclose()

    async def _sent(self, send: Send) -> None:
        try:
            await _send(send, _event(self._first))
            async for event in self._events:
                await _send(send, _event(event))
        except ClientGone:
            raise
        except Exception as error:
            fault = fault_from_error(error)
            await self._end(send, fault)
            if fault.status == 500:  # for the log
                raise
            return
        if self._last is not None:
            await _send(send, b"data: " + self._last + b"\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end(self, send: Send, fault: Fault) -> None:
        """The headers are sent: an error is an event."""
        await _send(send, _event(fault.to_dict()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(event: dict[str, Any]) -> bytes:
    """With its type as its name, where it has one."""
    name = f"event: {event['type']}\n".encode() if "type" in event else b""
    return name + b"data: " + json_bytes(event) + b"\n\n"


async def _send(send: Send, body: bytes) -> None:
    try:
        await asyncio.wait_for(send({"type": "http.response.body", "body": body, "more_body": True}), _SEND_TIMEOUT_S)
    except (asyncio.TimeoutError, OSError):
        raise ClientGone from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait for its end."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def first_of(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The first event."""
    return await events.__anext__()
