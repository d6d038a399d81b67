"""How well the crops of the second pass fit the region that a question is about. NumPy only; no model.

Only inserted areas count: for a crop with selected cells, the area of the kept cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdrpn.method.grids import Box
from sdrpn.method.roi import Crop

__all__ = ["RegionQuality", "mean_zoom", "region_quality"]

Bool = NDArray[np.bool_]
Floats = NDArray[np.float64]
# The share of a box's area that float32 geometry may miss at an edge.
ALL_BUT = 1e-9


@dataclass(frozen=True)
class RegionQuality:
    """The crops of one question compared with its true boxes.

    iou: of the areas of all crops and all boxes. recall: the share of the boxes' area that was inserted.
    contains: every box lies completely in one crop. point_in_box: the strongest point of the map is in a box.
    """

    iou: float
    recall: float
    contains: bool
    point_in_box: bool


def region_quality(
    crops: Sequence[Crop], truth: Sequence[Box], point_xy_px: tuple[float, float] | None
) -> RegionQuality:
    """Compare crops with true boxes; without crops everything is 0."""
    xs, ys = _edges(crops, truth, axis=0), _edges(crops, truth, axis=1)
    areas = np.diff(ys)[:, None] * np.diff(xs)
    covers = [_covered(crop, xs, ys) for crop in crops]
    inserted = np.logical_or.reduce(covers) if covers else np.zeros_like(areas, bool)
    boxes = [_inside(box, xs, ys) for box in truth]
    wanted = np.logical_or.reduce(boxes)
    both, either = (float(areas[part].sum()) for part in (inserted & wanted, inserted | wanted))
    return RegionQuality(
        iou=both / either,
        recall=both / float(areas[wanted].sum()),
        contains=all(_whole(box, covers, areas) for box in boxes),
        point_in_box=point_xy_px is not None and any(_holds(box, point_xy_px) for box in truth),
    )


def mean_zoom(crops: Sequence[Crop], image_wh: tuple[int, int]) -> float | None:
    """How many times longer a detail is in a crop than in the first pass; None without crops."""
    if not crops:
        return None
    side = max(image_wh)
    zooms = []
    for crop in crops:
        x1, y1, x2, y2 = crop.box_xyxy_px
        zooms.append(side / math.sqrt((x2 - x1) * (y2 - y1)))
    return float(np.mean(zooms))


def _edges(crops: Sequence[Crop], truth: Sequence[Box], axis: int) -> Floats:
    """Every coordinate at which a crop, a cell or a box begins or ends."""
    edges = [_crop_edges(crop, axis) for crop in crops]
    edges += [np.array((box[axis], box[axis + 2]), np.float64) for box in truth]
    return np.unique(np.concatenate(edges))


def _crop_edges(crop: Crop, axis: int) -> Floats:
    """The edges of a crop, and of its cells where only some are kept."""
    low, high = crop.box_xyxy_px[axis], crop.box_xyxy_px[axis + 2]
    parts = 1 if crop.keep_cells is None else crop.keep_cells.shape[1 - axis]
    return np.linspace(low, high, parts + 1)


def _covered(crop: Crop, xs: Floats, ys: Floats) -> Bool:
    """(rows, columns): which patches between the edges were inserted."""
    inside = _inside(crop.box_xyxy_px, xs, ys)
    if crop.keep_cells is None:
        return inside
    columns, rows = (_cell_of(crop, axis, (edges[:-1] + edges[1:]) / 2) for axis, edges in enumerate((xs, ys)))
    return inside & crop.keep_cells[np.ix_(rows, columns)]


def _cell_of(crop: Crop, axis: int, centres: Floats) -> NDArray[np.intp]:
    edges = _crop_edges(crop, axis)
    return np.clip(np.searchsorted(edges, centres) - 1, 0, len(edges) - 2)


def _inside(box: Box, xs: Floats, ys: Floats) -> Bool:
    x1, y1, x2, y2 = box
    across = (xs[:-1] >= x1) & (xs[1:] <= x2)
    down = (ys[:-1] >= y1) & (ys[1:] <= y2)
    inside: Bool = down[:, None] & across
    return inside


def _whole(box: Bool, covers: Sequence[Bool], areas: Floats) -> bool:
    missing = (float(areas[box & ~cover].sum()) for cover in covers)
    return any(area <= ALL_BUT * float(areas[box].sum()) for area in missing)


def _holds(box: Box, point_xy: tuple[float, float]) -> bool:
    return box[0] <= point_xy[0] < box[2] and box[1] <= point_xy[1] < box[3]
