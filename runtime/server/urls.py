"""Fetch a file from a public address, and from no other: names are resolved once, checked, and connected to as such.

Every redirect is checked again. The whole takes at most `TIMEOUT_S`, and no proxy, cookie or credential is used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from sdrpn.runtime.server.faults import Fault, shown

__all__ = ["Resolve", "fetch_public", "is_public"]

TIMEOUT_S = 10.0
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 16
_PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str, int], list[str]]  # host, port -> addresses


def fetch_public(
    url: str, most_bytes: int, resolve: Resolve | None = None, allow: Callable[[str], bool] | None = None
) -> bytes:
    """The bytes behind an http(s) URL.

    Args: resolve, allow: for tests: addresses of a host, and which of them may be connected to
    Raises: Fault 403 for an address that is not public, 413 for too many bytes, 400 for what cannot be fetched
    """
    deadline = time.monotonic() + TIMEOUT_S
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            status, place, data = _fetched(url, most_bytes, resolve or _resolved, allow or is_public, deadline)
            if place is None:
                if status != 200:
                    raise Fault(400, f"{shown(url)} answered with status {status}; expected 200", "invalid_image_url")
                return data
            url = urljoin(url, place)
    except (OSError, http.client.HTTPException, ValueError, UnicodeError) as error:
        raise Fault(400, f"{shown(url)} cannot be fetched ({type(error).__name__})", "invalid_image_url") from error
    raise Fault(400, f"{shown(url)} is more than {_MOST_REDIRECTS} redirects away", "invalid_image_url")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to no private, local or reserved network, in whatever way it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # An IPv4 address inside: what is reached is that one.
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found.sixtofour is not None or found.teredo is not None or found in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return found.is_global and not found.is_multicast


def _fetched(
    url: str, most_bytes: int, resolve: Resolve, allow: Callable[[str], bool], deadline: float
) -> tuple[int, str | None, bytes]:
    """Status, the place of a redirect or None, and the body."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise Fault(400, f"{shown(url)} is not an http(s) URL that is fetched", "invalid_image_url")
    port = parts.port or _PORTS[parts.scheme]
    addresses = resolve(parts.hostname, port)
    if not addresses or not all(allow(address) for address in addresses):
        raise Fault(403, f"{shown(url)} leads to an address that is not public", "image_not_allowed")
    connection = _Connection(parts.hostname, port, addresses[0], deadline, secure=parts.scheme == "https")
    try:
        path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        connection.request("GET", path, headers={"User-Agent": "sdrpn", "Accept": "image/*"})
        with connection.getresponse() as response:
            if response.status in _REDIRECTS:
                return response.status, response.getheader("Location") or "", b""
            return response.status, None, _body(response, connection, most_bytes, url)
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, connection: _Connection, most_bytes: int, url: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        connection.limit_time()
        part = response.read1(_CHUNK_BYTES)
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > most_bytes:
            raise Fault(413, f"{shown(url)} has more than {most_bytes:,} bytes, the limit", "image_too_large")
        parts.append(part)


def _resolved(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Connection(http.client.HTTPConnection):
    """To an address that was checked, under the name that it was found by."""

    def __init__(self, host: str, port: int, address: str, deadline: float, *, secure: bool) -> None:
        super().__init__(host, port)
        self._address, self._deadline, self._secure = address, deadline, secure
        self._wire: socket.socket

    def connect(self) -> None:
        """As the library calls it."""
        self.sock = self._wire = socket.create_connection((self._address, self.port), self._left_s())
        if self._secure:
            self.sock = self._wire = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self.limit_time()

    def limit_time(self) -> None:
        """A sender of a byte now and then does not get more time. Raises TimeoutError where it is over."""
        self._wire.settimeout(self._left_s())  # the library forgets it where the body ends with the connection

    def _left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is over")
        return left
