"""How a map becomes crops, as data: what another program needs to decide again from a map. Knows no model and no page.

`decide_cells` and `families/qwen/zoom.py` are the rules; `runtime/server/page/roi.js` follows them by this description.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["MapRules", "ResizedCells", "SquareCells"]


@dataclass(frozen=True)
class SquareCells:
    """Cells of a square of so many pixels that the picture was fitted into, see `PaddedGrid`."""

    side_px: int


@dataclass(frozen=True)
class ResizedCells:
    """Cells of a picture that was resized to whole cells of `cell_px` a side; each is a share of the picture.

    least_crop_px: the least side of a crop, in source pixels
    least_px, most_px, smallest_side_px, most_ratio: the budget of a crop; one that is smaller or longer is refused
    """

    cell_px: int
    least_crop_px: int
    least_px: int
    most_px: int
    smallest_side_px: int
    most_ratio: int


@dataclass(frozen=True)
class MapRules:
    """What a family does with the cells above the threshold.

    regions: "each": connected cells within the limits of the policy become regions, of which the policy makes crops;
    "around": one crop around all cells
    masked: with "around": only cells above the threshold are looked at, so that one has to be left on the crop's grid
    """

    regions: Literal["each", "around"]
    cells: SquareCells | ResizedCells
    masked: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        kind = "square" if isinstance(self.cells, SquareCells) else "resized"
        return {"regions": self.regions, "masked": self.masked, "cells": {"kind": kind, **asdict(self.cells)}}
