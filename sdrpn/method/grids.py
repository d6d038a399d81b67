"""The cells of an image grid and the pixels of the source image, whatever the model. NumPy only; reads no images.

A model sees a picture as h x w cells, one image token each. Their number may depend on the picture, and border cells
may show only padding. (h, w) is rows before columns; picture sizes are width before height.
Boxes are x1, y1, x2, y2 with exclusive upper bounds, in cells or in pixels of the upright source image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Box", "FloatArray", "ImageGrid", "IntArray", "cell_count", "centre_px"]

Box: TypeAlias = tuple[int, int, int, int]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


class ImageGrid(Protocol):
    """The h x w cells over one picture. A vision spec makes it: `spec.vision.grid(image_wh)`."""

    @property
    def image_wh(self) -> tuple[int, int]:
        """Size of the upright source image, in pixels."""

    @property
    def hw(self) -> tuple[int, int]:
        """Rows and columns of cells; their product is the number of image tokens of the picture."""

    @property
    def extent_px(self) -> tuple[float, float, float, float]:
        """The area that all cells cover, in source pixels: x1, y1, x2, y2; beyond the image if it was padded."""

    @property
    def seen_box_px(self) -> Box:
        """The part of the image that the model sees."""

    def box_px_from_cells(self, box_cells: Sequence[int] | IntArray) -> Box | None:
        """The source pixels under a box of cells, at least one; None where the box shows nothing of the image."""

    def box_cells_from_px(self, box_xyxy_px: Sequence[int] | IntArray) -> Box:
        """The smallest box of cells that contains a box of source pixels."""

    def crop_hw(self, box_xyxy_px: Box) -> tuple[int, int]:
        """Rows and columns of cells of the crop under a box, when it is encoded again."""


def cell_count(hw: tuple[int, int]) -> int:
    """The number of cells of a grid."""
    return hw[0] * hw[1]


def centre_px(grid: ImageGrid, row: int, column: int) -> tuple[float, float]:
    """The centre (x, y) of a cell, in source pixels; it may be outside the image if that was padded."""
    (rows, columns), (x1, y1, x2, y2) = grid.hw, grid.extent_px
    return x1 + (column + 0.5) * (x2 - x1) / columns, y1 + (row + 0.5) * (y2 - y1) / rows
