"""The grid of a model that sees every picture as one square. NumPy only; reads no images.

The model sees the image padded to a square and scaled to R x R pixels, or the middle of its longer side
(`VisionSpec.fit`), cut into G x G cells of R/G pixels.
Boxes are x1, y1, x2, y2 with exclusive upper bounds, in cells or in pixels of the upright source image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdrpn.errors import BadInput
from sdrpn.method.grids import Box, IntArray

__all__ = ["Fit", "PaddedGrid", "Seen", "resized_wh"]

Fit = Literal["pad", "crop"]
# What a grid covers of a picture: the square around it, the square in its middle, or just the picture.
Seen = Literal["pad", "crop", "whole"]


def resized_wh(image_wh: tuple[int, int], side_px: int) -> tuple[int, int]:
    """The size of an image whose shorter side is resized to R; the longer one is rounded down, as transformers does."""
    shorter, longer = min(image_wh), int(side_px * max(image_wh) / min(image_wh))
    return (side_px, longer) if image_wh[0] == shorter else (longer, side_px)


@dataclass(frozen=True)
class PaddedGrid:
    """An ImageGrid of G x G cells over an image that was padded to a square, or cut to one, and scaled to R x R px."""

    image_wh: tuple[int, int]  # source pixels
    image_size_px: int  # R
    grid_side: int  # G
    fit: Fit = "pad"

    def __post_init__(self) -> None:
        if min(self.image_wh) < 1 or self.image_size_px < 1 or self.grid_side < 1:
            raise BadInput(
                f"an image of {self.image_wh[0]}x{self.image_wh[1]} px on a grid of {self.grid_side} cells over "
                f"{self.image_size_px} px has no cells; expected sizes of at least 1"
            )

    @property
    def hw(self) -> tuple[int, int]:
        """G rows and G columns, whatever the picture."""
        return self.grid_side, self.grid_side

    @property
    def extent_px(self) -> tuple[float, float, float, float]:
        """The area that the R x R image covers, in source pixels."""
        left, top = self.padding_xy_px
        right, bottom = self.image_size_px - left, self.image_size_px - top
        return -left / self.scale, -top / self.scale, right / self.scale, bottom / self.scale

    def crop_hw(self, box_xyxy_px: Box) -> tuple[int, int]:
        """Every crop is squashed to R x R: G rows and G columns."""
        return self.hw

    @property
    def cell_px(self) -> float:
        """Side of a cell in pixels of the R x R image."""
        return self.image_size_px / self.grid_side

    @property
    def scale(self) -> float:
        """r: pixels of the R x R image per source pixel."""
        width, height = self.image_wh
        nearer = min if self.fit == "pad" else max
        return nearer(self.image_size_px / width, self.image_size_px / height)

    @property
    def padding_xy_px(self) -> tuple[float, float]:
        """Border left of and above the image in pixels of the R x R image, as in SD-RPN's geometry.

        Half of what `int(size * r)` leaves free, not the whole-pixel offset at which the image is pasted. Negative for
        an image that was cut: the size of the part outside.
        """
        if self.fit == "crop":
            width, height = resized_wh(self.image_wh, self.image_size_px)
            return -float((width - self.image_size_px) // 2), -float((height - self.image_size_px) // 2)
        width, height = (int(size * self.scale) for size in self.image_wh)
        return (self.image_size_px - width) / 2, (self.image_size_px - height) / 2

    @property
    def seen_box_px(self) -> Box:
        """The part of the image that the model sees: all of it, or the middle of its longer side."""
        if self.fit == "pad":
            return 0, 0, *self.image_wh
        seen = self.box_px_from_cells((0, 0, self.grid_side, self.grid_side))
        return seen if seen is not None else (0, 0, *self.image_wh)

    def box_px_from_cells(self, box_cells: Sequence[int] | IntArray) -> Box | None:
        """The source pixels under a box of cells; None where the box shows nothing but padding.

        SD-RPN's formula in its float32 arithmetic: clamped to the image, then truncated. In a very thin image
        truncation can leave no width: such a box keeps one pixel.
        """
        pads = np.array(self.padding_xy_px * 2, np.float32)
        limits = np.array(self.image_wh * 2, np.float32)
        exact = (np.asarray(box_cells, np.float32) * np.float32(self.cell_px) - pads) / np.float32(self.scale)
        x1, y1, x2, y2 = (int(value) for value in np.clip(exact, 0, limits))
        if x1 < x2 and y1 < y2:
            return x1, y1, x2, y2
        if not self.shows_image(box_cells):
            return None
        width, height = self.image_wh
        (x1, x2), (y1, y2) = _at_least_one_px(x1, x2, width), _at_least_one_px(y1, y2, height)
        return x1, y1, x2, y2

    def box_cells_from_px(self, box_xyxy_px: Sequence[int] | IntArray) -> Box:
        """The smallest box of cells that contains a box of source pixels: the inverse of `box_px_from_cells`."""
        pads = np.array(self.padding_xy_px * 2)
        exact = (np.asarray(box_xyxy_px, np.float64) * self.scale + pads) / self.cell_px
        # A value that is within float32 rounding of a cell border is on it: no extra row for a rounding error.
        nearest = np.round(exact)
        exact = np.where(np.abs(exact - nearest) < 1e-5 * self.grid_side, nearest, exact)
        x1, y1 = (min(max(int(value), 0), self.grid_side - 1) for value in np.floor(exact[:2]))
        x2, y2 = (min(int(value), self.grid_side) for value in np.ceil(exact[2:]))
        return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)

    def shows_image(self, box_cells: Sequence[int] | IntArray) -> bool:
        """Whether a box of cells overlaps the image where it was really pasted."""
        if self.fit == "crop":
            return True
        cells = np.asarray(box_cells, np.float64) * self.cell_px
        side = max(self.image_wh)
        for axis, size in enumerate(self.image_wh):
            first = (side - size) // 2 * self.image_size_px / side
            last = ((side - size) // 2 + size) * self.image_size_px / side
            if cells[axis + 2] <= first or cells[axis] >= last:
                return False
        return True


def _at_least_one_px(low: int, high: int, size: int) -> tuple[int, int]:
    if low < high:
        return low, high
    low = min(low, size - 1)
    return low, low + 1
