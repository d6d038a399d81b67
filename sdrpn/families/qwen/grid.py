"""The cells of a resized picture over its source: each is a share of the picture, nothing is padded. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sdrpn.families.family import Resize
from sdrpn.families.qwen.resize import PixelBudget, rounded_wh
from sdrpn.method.grids import Box, IntArray

__all__ = ["LEAST_CROP_PX", "ResizedGrid", "grown_box_px", "scaled_box_px"]

LEAST_CROP_PX = 28  # Q-Zoom's least side of a crop, in source pixels, for both families
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ResizedGrid:
    """An `ImageGrid` over a picture that is resized by a budget, and so are its crops."""

    image_wh: tuple[int, int]
    budget: PixelBudget
    resize: Resize = "once"

    @cached_property
    def hw(self) -> tuple[int, int]:
        """Raises BadImage for a picture that the budget refuses."""
        return self.budget.hw(rounded_wh(self.image_wh) if self.resize == "official" else self.image_wh)

    @property
    def extent_px(self) -> tuple[float, float, float, float]:
        """The picture, no more and no less."""
        return 0.0, 0.0, float(self.image_wh[0]), float(self.image_wh[1])

    @property
    def seen_box_px(self) -> Box:
        """All of it."""
        return 0, 0, *self.image_wh

    def box_px_from_cells(self, box_cells: Sequence[int] | IntArray, *, slid: bool = True) -> Box:
        """The pixels under a box of cells, grown to at least LEAST_CROP_PX a side where the picture has room.

        Args: slid: see `grown_box_px`
        """
        scaled = scaled_box_px(box_cells, self.hw, self.image_wh, self.budget.cell_px)
        return grown_box_px(scaled, self.image_wh, slid=slid)

    def box_cells_from_px(self, box_xyxy_px: Sequence[int] | IntArray) -> Box:
        """See `ImageGrid`. Whole-number arithmetic: an edge on a cell's border stays on it."""
        (x1, y1, x2, y2), (rows, columns), (width, height) = map(int, box_xyxy_px), self.hw, self.image_wh
        return x1 * columns // width, y1 * rows // height, -(-x2 * columns // width), -(-y2 * rows // height)

    def crop_hw(self, box_xyxy_px: Box) -> tuple[int, int]:
        """A crop has the whole budget of a picture of its own. Raises BadImage for one that the budget refuses."""
        x1, y1, x2, y2 = box_xyxy_px
        return self.budget.hw((x2 - x1, y2 - y1))


def scaled_box_px(
    box_cells: Sequence[int] | IntArray, hw: tuple[int, int], image_wh: tuple[int, int], cell_px: int
) -> Float32:
    """(4,) The edges of a box of cells in source pixels, not rounded.

    float32, by way of the resized picture, in the official order of operations: it decides what truncation cuts off.
    """
    (rows, columns), (width, height) = hw, image_wh
    ratios = np.array([width / (columns * cell_px), height / (rows * cell_px)] * 2).astype(np.float32)
    scaled: Float32 = np.asarray(box_cells, np.float32) * np.float32(cell_px) * ratios
    return scaled


def grown_box_px(
    box_xyxy: Float32, image_wh: tuple[int, int], least_px: int = LEAST_CROP_PX, *, slid: bool = True
) -> Box:
    """Whole pixels of a box: a side shorter than `least_px` grows about its centre and is slid into the picture.

    Edges are cut off after the point, as the official code does it. With `least_px` of 0, which is SD-RPN's, a box may
    have no pixels.

    Args:
        slid: also a side that did not grow is slid into the picture, as Q-Zoom does it. float32 can put its last edge
            beyond the picture by a fraction of a thousandth, which costs a first edge at a whole pixel that pixel.
    """
    (left, right), (top, bottom) = (
        _grown_span(box_xyxy[axis], box_xyxy[axis + 2], length, least_px, slid) for axis, length in enumerate(image_wh)
    )
    return left, top, right, bottom


def _grown_span(low: np.float32, high: np.float32, length: int, least_px: int, slid: bool) -> tuple[int, int]:
    end = np.float32(length)
    missing = np.float32(least_px) - (high - low)
    if missing > 0:
        low, high = low - missing / np.float32(2), high + missing / np.float32(2)
    if missing > 0 or slid:
        if low < 0:
            low, high = np.float32(0), high - low
        if high > end:
            low, high = low - (high - end), end
    return int(np.clip(low, np.float32(0), end)), int(np.clip(high, np.float32(0), end))
