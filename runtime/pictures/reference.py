"""The picture of a question, to be found again without keeping its pixels in memory."""

from __future__ import annotations

import os
import weakref

from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.method.geometry import Seen
from sdrpn.runtime.pictures.frames import Channels
from sdrpn.runtime.pictures.picture import PictureSource, open_picture

__all__ = ["PictureReference"]


class PictureReference:
    """Paths and bytes of files are kept; what was in memory already is found as long as somebody else keeps it."""

    def __init__(self, source: PictureSource, channels: Channels, size: tuple[int, int], fit: Seen) -> None:
        """Args: fit: how the map lies over it, see `VisionSpec`"""
        self.fit, self._channels, self._size = fit, channels, size
        self._file = source if isinstance(source, (str, os.PathLike, bytes)) else None
        self._object: weakref.ref[object] | None = None
        if self._file is None:
            try:
                self._object = weakref.ref(source)
            except TypeError:  # a library's own array may not allow it
                self._object = None

    def image(self, given: PictureSource | None = None) -> Image.Image:
        """The upright picture. `given`: the same once more. Raises BadInput where it is gone, or is another one."""
        source = given if given is not None else self._source
        if source is None:
            raise BadInput("the picture is not in memory any more; pass it again: overlay(image)")
        picture = open_picture(source, channels=self._channels)
        if picture.size != self._size:
            was, found = (f"{width}x{height}" for width, height in (self._size, picture.size))
            raise BadInput(f"the picture has {found} px, the one that was asked about {was}; pass that one")
        return picture.as_image()

    @property
    def _source(self) -> PictureSource | None:
        if self._file is not None:
            return self._file
        return self._object() if self._object is not None else None  # type: ignore[return-value]
