"""A region that the user names, in place of those that a map shows. NumPy only; knows no model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sdrpn.errors import BadInput
from sdrpn.method.grids import Box, ImageGrid
from sdrpn.method.roi import Crop, Float32, PolicyDecide, RoiDecision, roi_map, without_sinks

__all__ = ["decide_region", "require_box"]


def decide_region(box_xyxy_px: Box, grid_over: Callable[[tuple[int, int]], ImageGrid]) -> PolicyDecide:
    """Look at this box of the upright picture, whatever the map says; all its tokens are inserted.

    grid_over: the grid over an image of this size, `spec.vision.grid`.
    The decision raises BadInput for a box that is empty or extends beyond the picture.
    """

    def decide(logits: Float32, image_wh: tuple[int, int]) -> RoiDecision:
        require_box(box_xyxy_px, image_wh)
        cells = np.array([grid_over(image_wh).box_cells_from_px(box_xyxy_px)], np.int64)
        return RoiDecision(cells, (Crop(box_xyxy_px),), None, roi_map(logits))

    return without_sinks(decide)


def require_box(box_xyxy_px: Box, image_wh: tuple[int, int]) -> None:
    """Raise BadInput for a box that is empty or extends beyond the picture."""
    x1, y1, x2, y2 = box_xyxy_px
    width, height = image_wh
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise BadInput(
            f"the region is {list(box_xyxy_px)}; expected x1, y1, x2, y2 with x1 < x2 and y1 < y2 inside the "
            f"picture of {width}x{height} pixels"
        )
