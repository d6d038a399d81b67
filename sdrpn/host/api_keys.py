"""Keys that clients of a server must send, from a file with one key per line. Knows no server."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from sdrpn.errors import BadInput

__all__ = ["ApiKeys", "keys_in", "read_api_keys"]

SHORTEST_KEY = 16  # characters: a shorter key could be guessed over a network
_MOST_FILE_BYTES = 1 << 20


class ApiKeys:
    """Keys, any of which is accepted. They are never shown."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Args: keys: without one none is accepted"""
        self._digests = tuple(_digest(key) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def accept(self, candidate: str | None) -> bool:
        """Whether it is one of the keys. The time tells neither which one, nor its length, nor how much is right."""
        given = _digest(candidate or "")
        found = [hmac.compare_digest(digest, given) for digest in self._digests]  # all, also after one that is equal
        return any(found)

    def accept_header(self, authorization: str | None) -> bool:
        """Whether a header `Authorization: Bearer KEY` holds one of the keys."""
        scheme, _, key = (authorization or "").partition(" ")
        return self.accept(key.strip() if scheme.lower() == "bearer" else None)

    def __repr__(self) -> str:
        return f"ApiKeys({len(self)})"


def read_api_keys(path: str | os.PathLike[str]) -> ApiKeys:
    """The keys of a file, as `keys_in` reads it."""
    return ApiKeys(keys_in(path))


def keys_in(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The keys of a file: one per line; empty lines and lines that begin with # are skipped.

    Raises: BadInput for a file that cannot be read, has no key, or a key that is too short or has spaces
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_FILE_BYTES).decode("utf-8")
    except OSError as error:
        raise BadInput(
            f"the file of API keys {path} cannot be read ({error.strerror}); name a file with a key"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the file of API keys {path} is not UTF-8 text; expected a key per line") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    keys = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, key in keys:
        if len(key) < SHORTEST_KEY or len(key.split()) != 1 or not key.isascii():
            raise BadInput(
                f"line {number} of the file of API keys {path} is not a key of at least {SHORTEST_KEY} ASCII "
                "characters without spaces; make one with: openssl rand -hex 32"
            )
    if not keys:
        raise BadInput(f"the file of API keys {path} has no key; make one with: openssl rand -hex 32")
    return tuple(key for _, key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
