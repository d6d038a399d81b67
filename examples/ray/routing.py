"""Which picture a request is about: the next question about it is for the replica that knows it. Knows no Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

__all__ = ["picture_digest"]

# Bodies with one or several of them: chats have messages, responses have an input, a look has one image.
_TURNS = ("messages", "input")


def picture_digest(body: bytes) -> str | None:
    """Digest of the first picture's URL in the body of a request, 32 hexadecimal digits; None: it has no picture.

    The prefix of a prompt ends with its first picture, so further pictures do not matter. A picture as a data URL is
    digested with all its bytes. What is not JSON, or not a request, has no picture: the replica that gets it says why.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    url = next(_urls(request), None)
    return None if url is None else hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _urls(request: dict[str, Any]) -> Iterator[str]:
    yield from _url_of(request.get("image"))
    for turns in (request.get(name) for name in _TURNS):
        for turn in turns if isinstance(turns, list) else ():
            parts = turn.get("content") if isinstance(turn, dict) else None
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    yield from _url_of(part.get("image_url"))


def _url_of(image: object) -> Iterator[str]:
    """A picture is a URL, or an object that has one."""
    url = image.get("url") if isinstance(image, dict) else image
    if isinstance(url, str):
        yield url
