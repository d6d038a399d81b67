"""One frame: pixels, and which frame of which source they are. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadImage
from sdrpn.images.image import check_array

__all__ = ["Frame", "Pixels", "rgb_pixels"]

Pixels: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3), RGB


@dataclass(frozen=True, eq=False)
class Frame:
    """Pixels of one moment.

    pixels: (H, W, 3) uint8, RGB. source: what it was read from, without passwords. index: its number in the source,
    from 0, frames counted that were left out. time_s: seconds since the source's first frame; None where a source has
    no time, as a folder of pictures. dropped: how many frames of the source were replaced by newer ones so far.
    Raises: BadImage for an array that is not such a picture.
    """

    pixels: Pixels
    source: str = "frames"
    index: int = 0
    time_s: float | None = None
    dropped: int = 0

    def __post_init__(self) -> None:
        check_array(self.pixels)

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def rgb_pixels(array: npt.NDArray[Any]) -> Pixels:
    """An (H, W, 3) array as uint8: floating-point values are taken as 0 to 1.

    Raises: BadImage for NaN or infinite values, for values outside of 0 to 1, and for other shapes and types.
    """
    if not np.issubdtype(array.dtype, np.floating):
        check_array(array)
        return array
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise BadImage(
            f"a frame has {bad:,} of {array.size:,} values that are NaN or infinite; expected numbers from 0 to 1: "
            "repair the frame or leave it out"
        )
    if array.size and (array.min() < 0 or array.max() > 1):
        raise BadImage(
            f"a frame of {array.dtype} has values from {array.min():.4g} to {array.max():.4g}; expected 0 to 1: divide "
            "by the largest value, or pass uint8"
        )
    pixels = np.round(array * 255).astype(np.uint8)
    check_array(pixels)
    return pixels
