"""A JPEG file whose parts are decoded on demand, upright and with Pillow's pixels.

Files for which libjpeg-turbo has warnings are left to Pillow. Knows nothing about models.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadImage
from sdrpn.host.native_modules import native_module
from sdrpn.images.image import ImageSource, JpegHeader, open_image, open_smaller
from sdrpn.method.grids import Box

__all__ = ["DENOMINATORS", "JpegFile"]

Array = npt.NDArray[np.uint8]

DENOMINATORS = (1, 2, 4, 8)  # divisors of the sides in DCT scaling
# Skipping a row costs about half of decoding it (it must be read), so the first of two threads gets more rows.
FIRST_OF_TWO = 2 / 3
TWO_THREADS_FROM_PIXELS = 2_000_000


@dataclass(frozen=True)
class JpegFile:
    """The bytes of a file, and its header."""

    source: ImageSource  # the source of the bytes, for errors
    data: bytes
    header: JpegHeader

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        width, height = self.header.stored_wh
        return (height, width) if self._swapped else (width, height)

    def whole(self, threads: int = 1) -> Array:
        """All pixels, (H, W, 3). Raises: BadImage."""
        width, height = self.header.stored_wh
        stored = self._decoded((0, 0, width, height), threads)
        return self._opened() if stored is None else self._upright(stored)

    def part(self, box_xyxy_px: Box) -> Array:
        """The pixels of a box inside the picture; rows below it are not read. Raises: BadImage."""
        stored = self._decoded(self._stored_box(box_xyxy_px), threads=1)
        if stored is not None:
            return self._upright(stored)
        x1, y1, x2, y2 = box_xyxy_px
        return self._opened()[y1:y2, x1:x2]

    def smaller(self, denominator: int) -> Array:
        """The whole picture, its sides divided by 1, 2, 4 or 8 and rounded up, by DCT scaling. Raises: BadImage."""
        native = native_module("_native_jpeg")
        if native is None:
            return self._drafted(denominator)
        width, height = self.header.stored_wh
        stored = np.empty((-(-height // denominator), -(-width // denominator), 3), np.uint8)
        try:
            native.decode(self.data, stored, denominator=denominator)
        except ValueError:
            return self._drafted(denominator)
        return self._upright(stored)

    @property
    def _swapped(self) -> bool:
        return self.header.orientation >= 5

    @property
    def _flipped_xy(self) -> tuple[bool, bool]:
        """Whether the stored picture is mirrored along x, and along y, before its axes are swapped."""
        return self.header.orientation in (2, 3, 7, 8), self.header.orientation in (3, 4, 6, 7)

    def _decoded(self, stored_box: Box, threads: int) -> Array | None:
        """Pixels in stored orientation; None without a native decoder, or where it warns about the file."""
        native = native_module("_native_jpeg")
        if native is None:
            return None
        x1, y1, x2, y2 = stored_box
        out = np.empty((y2 - y1, x2 - x1, 3), np.uint8)
        cuts = self._cuts(len(out), out.size // 3, threads)

        def decode(first_last: tuple[int, int]) -> None:
            first, last = first_last
            native.decode(self.data, out[first:last], left=x1, top=y1 + first)

        try:
            if len(cuts) == 2:
                decode((0, len(out)))
            else:
                with ThreadPoolExecutor(len(cuts) - 1) as pool:
                    list(pool.map(decode, pairwise(cuts)))
        except ValueError:
            return None
        return out

    def _cuts(self, rows: int, pixels: int, threads: int) -> list[int]:
        """The rows at which threads split the work. A progressive file is not split: each part would read it all."""
        if threads < 2 or pixels < TWO_THREADS_FROM_PIXELS or self.header.progressive:
            return [0, rows]
        return [0, int(rows * FIRST_OF_TWO), rows]

    def _upright(self, stored: Array) -> Array:
        flip_x, flip_y = self._flipped_xy
        turned = stored[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        return np.ascontiguousarray(turned.transpose(1, 0, 2) if self._swapped else turned)

    def _stored_box(self, box_xyxy_px: Box) -> Box:
        x1, y1, x2, y2 = box_xyxy_px
        if self._swapped:
            x1, y1, x2, y2 = y1, x1, y2, x2
        (width, height), (flip_x, flip_y) = self.header.stored_wh, self._flipped_xy
        if flip_x:
            x1, x2 = width - x2, width - x1
        if flip_y:
            y1, y2 = height - y2, height - y1
        return x1, y1, x2, y2

    def _opened(self) -> Array:
        return np.asarray(open_image(self.source))

    def _drafted(self, denominator: int) -> Array:
        """DCT scaling by Pillow; damaged files raise the errors of `open_image`."""
        try:
            return np.asarray(open_smaller(self.data, denominator))
        except BadImage:
            return self._opened()
