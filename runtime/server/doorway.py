"""What every request passes before an endpoint sees it: its id, key, origin and size; and its line in the log.

An ASGI middleware. A page of another site cannot use a server on this machine: cross-origin requests are refused unless
their origin is allowed, bodies have to be JSON, and a name that was made to point here does not open it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdrpn.host.api_keys import ApiKeys
from sdrpn.runtime.server.bodies import keep_json
from sdrpn.runtime.server.connection import ClientGone
from sdrpn.runtime.server.faults import Fault, fault_from_error
from sdrpn.runtime.server.log import RequestLog
from sdrpn.runtime.server.metrics import Metrics
from sdrpn.runtime.server.notes import notes_of_request
from sdrpn.runtime.server.options import ServerOptions

__all__ = ["Doorway"]

# Below these a key is needed; pages and their files hold nothing, and neither does what says that a process lives.
_GUARDED = ("/v1/", "/admin/", "/metrics")
_WITH_BODY = ("POST", "PUT", "PATCH")


class Doorway:
    """See the module."""

    def __init__(
        self, app: ASGIApp, options: ServerOptions, metrics: Metrics, connections: Callable[[], int] = lambda: 0
    ) -> None:
        """Args: connections: how many there are now"""
        self._app, self._options, self._metrics, self._connections = app, options, metrics, connections
        self._log = RequestLog(options.log_format)
        self._keys = ApiKeys(options.api_keys)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        with notes_of_request() as notes:
            await self._pass(scope, receive, _Passage(scope, send), notes)

    async def _pass(self, scope: Scope, receive: Receive, passage: _Passage, notes: dict[str, Any]) -> None:
        held = _Held()
        try:
            self._check(scope)
            body = b""
            if scope["method"] in _WITH_BODY:
                self._hold(held, self._declared_bytes(scope))
                body = await self._body(receive, held)
                if _is_json(scope):
                    await keep_json(scope["state"], body)
            await self._app(scope, _replayed(body, receive), passage.send)
        except ClientGone:
            passage.error = "client gone"
            self._metrics.gone()
        except Exception as error:
            await self._refuse(error, passage, scope, receive)
        finally:
            self._held_bytes -= held.size_bytes
            self._note(passage, scope, notes)

    async def _refuse(self, error: Exception, passage: _Passage, scope: Scope, receive: Receive) -> None:
        fault = fault_from_error(error)
        passage.error = fault.message
        if fault.status == 500:
            self._log.failure(passage.id, error)
        if not passage.begun:
            response = fault.response()
            if fault.status in (408, 413, 429):  # the body was not read to its end
                response.headers["Connection"] = "close"
            await response(scope, receive, passage.send)

    def _check(self, scope: Scope) -> None:
        """Raises Fault for whom this server is not."""
        headers, path = dict(scope["headers"]), scope["path"]
        if self._connections() > self._options.most_connections:
            raise Fault(
                429,
                f"there are more than {self._options.most_connections} connections",
                "too_many_connections",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        origin = headers.get(b"origin")
        if origin is not None and not self._is_welcome(origin, headers.get(b"host")):
            raise Fault(403, "requests from pages of other origins are refused", "cross_origin")
        if not path.startswith(_GUARDED):
            return
        if self._keys:
            self._check_key(headers)
        elif not _is_expected_host(headers.get(b"host", b""), scope):
            raise Fault(403, "the header Host names neither this machine nor an address", "unexpected_host")
        if _is_json(scope):
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Fault(415, "the body has another type than application/json", "unsupported_media_type")

    def _is_welcome(self, origin: bytes, host: bytes | None) -> bool:
        """Whether a page of that origin may ask: one of this server, or of one that was allowed."""
        return origin.partition(b"://")[2] == host or origin.decode("latin-1") in self._options.allow_origins

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        if not self._keys.accept_header(headers.get(b"authorization", b"").decode("latin-1")):
            raise Fault(
                401,
                "the API key is missing or wrong; send Authorization: Bearer KEY",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _declared_bytes(self, scope: Scope) -> int:
        """What a request says it will send; 0 where it does not say so. Raises Fault."""
        text = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            length = int(text) if text.isdigit() else None
        except ValueError:  # of thousands of digits
            length = None
        if length is None:
            raise Fault(400, "the header Content-Length is not a number")
        self._require_size(length)
        return length

    def _require_size(self, length: int) -> None:
        most = self._options.most_body_bytes
        if length > most:
            raise Fault(413, f"the body has more than {most:,} bytes, the limit", "body_too_large")

    def _hold(self, held: _Held, size_bytes: int) -> None:
        """Count what a request holds by now. Raises Fault where all together would be too much; one may always come."""
        more = max(size_bytes - held.size_bytes, 0)
        others = self._held_bytes - held.size_bytes
        if others and more and self._held_bytes + more > self._options.most_held_bytes:
            raise Fault(
                429, "the requests that are in progress fill the memory for them", "busy", headers={"Retry-After": "1"}
            )
        held.size_bytes += more
        self._held_bytes += more

    async def _body(self, receive: Receive, held: _Held) -> bytes:
        """All of it. Fault 408 for a client that is too slow, 413 for one that sends too much; 429 as `_hold`."""
        try:
            return await asyncio.wait_for(self._read(receive, held), self._options.body_timeout_s)
        except asyncio.TimeoutError:
            raise Fault(
                408, f"the body was not complete within {self._options.body_timeout_s:g} s", "body_timeout"
            ) from None

    async def _read(self, receive: Receive, held: _Held) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            self._require_size(size)
            self._hold(held, size)  # of a body in chunks nothing was declared
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _note(self, passage: _Passage, scope: Scope, notes: dict[str, Any]) -> None:
        if passage.status is not None and passage.status >= 400:
            self._metrics.refused(passage.status)
        self._log.request(
            id=passage.id,
            client=(scope.get("client") or ("-",))[0],
            method=scope["method"],
            path=scope["path"][:200],
            status=passage.status,
            seconds=round(time.perf_counter() - passage.start, 6),
            **{"error": passage.error} | notes,
        )


@dataclass
class _Held:
    """What the body of one request counts for."""

    size_bytes: int = 0


class _Passage:
    """One request: its id, and what was sent so far."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id, self.start = uuid4().hex, time.perf_counter()
        self.status: int | None = None
        self.error: str | None = None
        self.begun = False
        self._send = send
        scope.setdefault("state", {})["request_id"] = self.id

    async def send(self, message: Message) -> None:
        """As ASGI's, with the id among the headers."""
        if message["type"] == "http.response.start":
            self.status, self.begun = message["status"], True
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            message = {**message, "headers": [*headers, (b"x-content-type-options", b"nosniff")]}
        await self._send(message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and then what else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _is_json(scope: Scope) -> bool:
    """Whether a body has to be JSON."""
    return scope["method"] in _WITH_BODY and scope["path"].startswith("/v1/")


def _is_expected_host(host: bytes, scope: Scope) -> bool:
    """On loopback, where everybody on this machine may ask, a name that resolves to it must not open it to a page."""
    address = (scope.get("server") or ("",))[0]
    if address not in ("127.0.0.1", "::1"):
        return True
    name = host.rpartition(b":")[0] if host.rpartition(b":")[2].isdigit() else host
    return name.lower() in (b"127.0.0.1", b"localhost", b"[::1]")
