"""Regions of a picture with their scores: what a decision chose, and what it left out. Data and arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.method.grids import Box, ImageGrid
from sdrpn.method.roi import RoiDecision

__all__ = ["DroppedRegion", "Region", "dropped_regions", "regions_of", "scored_regions"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """A part of the picture that a question is about."""

    xyxy_px: Box  # in pixels of the upright picture, upper bounds exclusive
    score_max: float  # highest value of the map under it, 0..1
    score_mean: float  # mean of them
    cells: Box  # x1, y1, x2, y2 of the map's cells that contain it, upper bounds exclusive

    @property
    def score(self) -> float:
        """`score_max`."""
        return self.score_max

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "xyxy_px": list(self.xyxy_px),
            "score_max": self.score_max,
            "score_mean": self.score_mean,
            "cells": list(self.cells),
        }


@dataclass(frozen=True)
class DroppedRegion:
    """A part of the map that fired and was left out."""

    xyxy_px: Box | None  # None: it lies in the padding around the picture
    score_max: float
    score_mean: float
    cells: Box
    reason: str  # such as "fewer than 2 cells"

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "xyxy_px": None if self.xyxy_px is None else list(self.xyxy_px),
            "score_max": self.score_max,
            "score_mean": self.score_mean,
            "cells": list(self.cells),
            "reason": self.reason,
        }


def regions_of(decision: RoiDecision, roi_map: FloatArray, grid: ImageGrid) -> tuple[Region, ...]:
    """Its crops, in order. `roi_map`: (h, w) in 0..1 over `grid`."""
    return scored_regions([crop.box_xyxy_px for crop in decision.crops], roi_map, grid)


def scored_regions(boxes: Sequence[Box], roi_map: FloatArray, grid: ImageGrid) -> tuple[Region, ...]:
    """Boxes in pixels of the picture, with what the map (h, w) holds under each."""
    return tuple(Region(box, *_scored(roi_map, grid.box_cells_from_px(box))) for box in boxes)


def dropped_regions(decision: RoiDecision, roi_map: FloatArray, grid: ImageGrid) -> tuple[DroppedRegion, ...]:
    """What it left out, and why. `roi_map`: as in `regions_of`."""
    return tuple(
        DroppedRegion(grid.box_px_from_cells(region.box_cells), *_scored(roi_map, region.box_cells), region.reason)
        for region in decision.left_out
    )


def _scored(roi_map: FloatArray, cells: Sequence[int]) -> tuple[float, float, Box]:
    x1, y1, x2, y2 = (int(edge) for edge in cells)
    values = roi_map[y1:y2, x1:x2]
    return float(values.max()), float(values.mean()), (x1, y1, x2, y2)
