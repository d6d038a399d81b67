"""Pictures of requests: where their bytes are from, how large they may be, and how they are opened."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

from sdrpn.images.picture_file import identified
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.server.content import bytes_of_data_url
from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.options import ServerOptions

__all__ = ["PictureSources"]

_NO_LIMIT = 1 << 62


class PictureSources:
    """Opens what requests name. Its methods block: call them in a thread."""

    def __init__(self, options: ServerOptions, open_it: Callable[[bytes], Picture]) -> None:
        self._options, self._open = options, open_it

    def opened(self, url: str) -> Picture:
        """The picture of a URL, upright. Raises Fault for one that is too large or may not be read; BadImage."""
        data = self._bytes(url)
        self._check_size(data)
        return self._open(data)

    def _bytes(self, url: str) -> bytes:
        if url[:5].lower() == "data:":
            return bytes_of_data_url(url)
        raise Fault(400, "the picture is not a data URL; expected data:image/png;base64,...", "invalid_image_url")

    def _check_size(self, data: bytes) -> None:
        """Before anything is decoded. Raises Fault 413, which names the largest picture of this shape."""
        most = self._options.most_pixels
        with identified(io.BytesIO(data), "the picture", _NO_LIMIT) as image:
            width, height = image.size
        if width * height > most:
            scale = math.sqrt(most / (width * height))
            raise Fault(
                413,
                f"the picture has {width}x{height} = {width * height:,} pixels; the limit is {most:,}: the largest of "
                f"this shape is {math.floor(width * scale)}x{math.floor(height * scale)}",
                "image_too_large",
            )
