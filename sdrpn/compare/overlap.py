"""How much of a picture two sets of boxes both cover. NumPy only; knows nothing about models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdrpn.method.grids import Box

__all__ = ["overlap"]


def overlap(found: Sequence[Box], expected: Sequence[Box]) -> float:
    """Intersection over union of the areas that two sets of boxes cover, in pixels; 1 if both are empty."""
    sides = (*found, *expected)
    if not sides:
        return 1.0
    # Between two adjacent edges a box either covers a cell or does not, so cells between edges suffice, whatever their
    # size.
    xs, ys = (np.unique([box[axis + end] for box in sides for end in (0, 2)]) for axis in (0, 1))
    areas = np.diff(ys)[:, None] * np.diff(xs)[None, :]
    seen = [_covered(boxes, xs, ys) for boxes in (found, expected)]
    union = float(areas[seen[0] | seen[1]].sum())
    return float(areas[seen[0] & seen[1]].sum()) / union if union else 1.0


def _covered(boxes: Sequence[Box], xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which cells between the edges `xs` and `ys` a box covers."""
    seen = np.zeros((len(ys) - 1, len(xs) - 1), bool)
    for x0, y0, x1, y1 in boxes:
        seen |= ((ys[:-1] >= y0) & (ys[1:] <= y1))[:, None] & ((xs[:-1] >= x0) & (xs[1:] <= x1))[None, :]
    return seen
