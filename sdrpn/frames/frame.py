"""One frame: pixels, and which frame of which source they are. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sdrpn.images.image import check_array

__all__ = ["Frame", "Pixels"]

Pixels: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3), RGB


@dataclass(frozen=True, eq=False)
class Frame:
    """Pixels of one moment.

    pixels: (H, W, 3) uint8, RGB. source: what it was read from, without passwords. index: its number in the source,
    from 0, frames counted that were left out. time_s: seconds since the source's first frame; None where a source has
    no time, as a folder of pictures. dropped: how many frames of the source were replaced by newer ones so far.
    Raises: BadImage for an array that is not such a picture.
    """

    pixels: Pixels = field(repr=False)
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

    def place(self) -> dict[str, Any]:
        """Which frame it is, as a line of JSON says it: all but its pixels."""
        return {
            "source": self.source,
            "frame": self.index,
            "time_s": None if self.time_s is None else round(self.time_s, 6),
            "image_wh": list(self.size_wh),
            "dropped": self.dropped,
        }
