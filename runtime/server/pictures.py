"""Pictures of requests: where their bytes are from, and how large they may be. Nothing is decoded here."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdrpn.errors import BadImage
from sdrpn.images.decoded_size import BYTES_PER_PIXEL, decoded_bytes
from sdrpn.images.image_root import ImageRoot
from sdrpn.images.picture_file import identified
from sdrpn.runtime.server.faults import Fault, shown
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.urls import fetch_public

__all__ = ["PictureFile", "PictureSources", "bytes_of_data_url", "largest_of_shape"]

_NO_LIMIT = 1 << 62
_PIECE = 256 << 10  # characters of base64, a multiple of four
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*?;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class PictureFile:
    """A picture that is not decoded yet."""

    data: bytes
    wh: tuple[int, int]  # as it is stored: a picture that lies on its side has them exchanged

    @property
    def size_bytes(self) -> int:
        """The memory that it takes with its pixels."""
        return decoded_bytes(*self.wh, len(self.data))


class PictureSources:
    """Reads what requests name. Its methods block: call them in a thread."""

    def __init__(self, options: ServerOptions, fetch: Callable[[str, int], bytes] = fetch_public) -> None:
        """Args: fetch: the bytes behind a URL, at most so many"""
        self._options, self._fetch = options, fetch

    def is_slow(self, url: str) -> bool:
        """Whether it is fetched from elsewhere."""
        return url[:4].lower() == "http"

    def read(self, url: str) -> PictureFile:
        """The file behind a URL. Raises Fault for one that is too large or may not be read; BadImage."""
        data = self._bytes(url)
        with identified(io.BytesIO(data), "the picture", _NO_LIMIT) as image:
            wh = image.size
        self._check_size(wh)
        return PictureFile(data, wh)

    def _bytes(self, url: str) -> bytes:
        scheme = url[:10].partition(":")[0].lower()
        if scheme == "data":
            return bytes_of_data_url(url)
        if scheme in ("http", "https"):
            if not self._options.allow_image_urls:
                raise _not_allowed("URLs are not fetched by this server", "--allow-image-urls")
            return self._fetch(url, self._options.most_body_bytes)
        if scheme == "file":
            if self._options.image_root is None:
                raise _not_allowed("files are not read by this server", "--image-root DIR")
            return read_below(self._options.image_root, url, self._options.most_body_bytes)
        raise Fault(400, "the picture has no known URL; expected data:image/png;base64,...", "invalid_image_url")

    def _check_size(self, wh: tuple[int, int]) -> None:
        """Raises Fault 413, which names the largest picture of this shape."""
        width, height = wh
        most = min(self._options.most_pixels, self._options.picture_bytes // BYTES_PER_PIXEL)
        if width * height > most:
            fitting = largest_of_shape(wh, lambda w, h: w * h <= most)
            raise Fault(
                413,
                f"the picture has {width}x{height} = {width * height:,} pixels; the limit is {most:,}: the largest of "
                f"this shape is {fitting[0]}x{fitting[1]}",
                "image_too_large",
            )


def largest_of_shape(wh: tuple[int, int], fits: Callable[[int, int], bool]) -> tuple[int, int]:
    """Width and height of the largest picture with these proportions that fits; at least 1x1."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(*_scaled(wh, middle)) else (low, middle)
    return _scaled(wh, low)


def bytes_of_data_url(url: str) -> bytes:
    """The file in a data URL. Raises Fault for one that is not in base64."""
    head = _DATA_URL.match(url[:200])
    if head is None:
        raise Fault(400, "the picture's data URL is not in base64; expected data:image/png;base64,...", "invalid_image")
    try:
        return b"".join(_decoded(url, head.end()))
    except (binascii.Error, ValueError):
        raise Fault(400, "the picture's data URL is not valid base64", "invalid_image") from None


def _decoded(url: str, start: int) -> Iterator[bytes]:
    """In pieces: the library gives other threads no turn while it decodes one. Raises ValueError."""
    for place in range(start, len(url), _PIECE):
        piece = url[place : place + _PIECE]
        if piece.endswith("=") and place + _PIECE < len(url):
            raise ValueError("padding before the end")
        yield base64.b64decode(piece, validate=True)


def read_below(root: Path, url: str, most_bytes: int) -> bytes:
    """A file that a `file:` URL names, if it lies below `root` when all links are followed.

    Raises: Fault 403 for one elsewhere, 400 for what is not a file, 413 for one that is too large
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or "\0" in path or not path:
        raise Fault(400, f"{shown(url)} names no file of this machine; expected file:///PATH", "invalid_image_url")
    below = ImageRoot(root)
    if not below.holds(path):
        raise Fault(403, f"{shown(url)} is not below the folder whose pictures may be read", "image_not_allowed")
    try:
        data = below.first_bytes(path, most_bytes + 1)
    except BadImage:
        raise Fault(400, f"{shown(url)} cannot be read; expected a picture", "invalid_image_url") from None
    if len(data) > most_bytes:
        raise Fault(413, f"{shown(url)} has more than {most_bytes:,} bytes, the limit", "image_too_large")
    return data


def _scaled(wh: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, math.floor(wh[0] * scale)), max(1, math.floor(wh[1] * scale))


def _not_allowed(what: str, option: str) -> Fault:
    return Fault(403, f"{what}; send the picture itself as data:image/png;base64,... ({option})", "image_not_allowed")
