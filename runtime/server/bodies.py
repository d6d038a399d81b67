"""The JSON of a request, read so that the event loop goes on: pictures are cut out before, and many values refused.

A picture in base64 is most of a body. It is found by a search for quotation marks, which takes a tenth of the time of a
JSON parser; and no library gives others a turn while it parses. Knows no endpoint.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from sdrpn.runtime.server.faults import Fault

__all__ = ["JsonRoute", "keep_json", "read_json"]

_IN_A_THREAD_BYTES = 256 << 10
_LONG_BYTES = 16 << 10  # a shorter string is parsed with the rest
_PICTURE = b'"data:'
# Each begins a value, so that there are at most one more than these. Checking costs up to some microseconds for each.
_BEGINS = (b",", b":", b"[", b"{")
_MOST_VALUES = 50_000


class JsonRoute(APIRoute):
    """A route whose body was read by `read_json` and kept by `keep_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()

        async def handle_known(request: Request) -> Response:
            return await handle(_KnownJson(request.scope, request.receive))

        return handle_known


class _KnownJson(Request):
    """Its JSON is not parsed again."""

    async def json(self) -> Any:
        known = self.scope.get("state", {})
        return known["json"] if "json" in known else await super().json()


async def keep_json(state: dict[str, Any], body: bytes) -> None:
    """Parse a body for the route that gets it. `state`: of the request's scope. Raises Fault, as `read_json`."""
    if body:
        is_long = len(body) > _IN_A_THREAD_BYTES
        state["json"] = await asyncio.to_thread(read_json, body) if is_long else read_json(body)


def read_json(body: bytes) -> Any:
    """The value, as json.loads has it. Raises Fault 400 for what is not JSON, 413 for more values than are checked."""
    rest, pictures = _cut_out(body)
    values = sum(map(rest.count, _BEGINS))
    if values > _MOST_VALUES:
        raise Fault(
            413,
            f"the body has {values:,} commas, colons and opening brackets; the limit is {_MOST_VALUES:,}",
            "body_too_large",
        )
    if pictures:
        try:
            return _put_back(json.loads(rest), pictures)
        except (ValueError, RecursionError):
            pass  # said with the place in the whole body
    return _parsed(body)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise Fault(400, f"the body is not JSON: {error.msg} at character {error.pos}", "invalid_request") from None
    except RecursionError:
        raise Fault(400, "the body is not JSON: it is nested too deeply", "invalid_request") from None
    except ValueError:
        raise Fault(400, "the body is not JSON: it cannot be read", "invalid_request") from None


def _cut_out(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The body with a name in place of each long data URL, and these URLs by name."""
    secret, found = secrets.token_hex(8), dict[str, str]()
    parts, kept = list[bytes](), 0
    start = body.find(_PICTURE)
    while start >= 0:
        end = body.find(b'"', start + 1)
        if end < 0:
            break
        # A quotation mark after a backslash belongs to a string. One with a backslash inside needs a parser.
        is_string = body[start - 1 : start] != b"\\" and body.find(b"\\", start, end) < 0
        if is_string and end - start > _LONG_BYTES and (url := body[start + 1 : end]).isascii():
            name = f"{secret}-{len(found)}"
            found[name] = url.decode("ascii")
            parts += [body[kept : start + 1], name.encode("ascii")]
            kept = end
        start = body.find(_PICTURE, end)
    return b"".join([*parts, body[kept:]]), found


def _put_back(value: Any, pictures: dict[str, str]) -> Any:
    """The value with the pictures in it. Raises ValueError where one is a name."""
    open_values: list[Any] = [holder := [value]]
    while open_values:
        outer = open_values.pop()
        if isinstance(outer, dict) and not pictures.keys().isdisjoint(outer):
            raise ValueError("a picture is the name of an entry")
        for key, inner in outer.items() if isinstance(outer, dict) else enumerate(outer):
            if isinstance(inner, str):
                outer[key] = pictures.get(inner, inner)
            elif isinstance(inner, (dict, list)):
                open_values.append(inner)
    return holder[0]
