"""The crop rule of ViCrop (Zhang et al., "MLLMs Know Where to Look", ICLR 2025, relative attention). NumPy only.

As published: a map of attention to the image is divided by the same map for a general question; windows of 1 to 2 times
the model's input side in source pixels slide over its cells; the size whose best position has the highest contrast to
its neighbours is chosen, and moved into the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.method.grids import Box

__all__ = ["PUBLISHED_LAYER_SHARE", "WINDOW_RATIOS", "relative_map", "vicrop_box"]

Floats = NDArray[np.floating[Any]]

WINDOW_RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
PUBLISHED_LAYER_SHARE = 14 / 32  # layer 14 of LLaVA-1.5-7B's 32, counted from 0


def relative_map(asked: Floats, general: Floats) -> Floats:
    """(G,G): attention for the question over that for a general question; 0 where both are 0."""
    quotient: Floats = np.divide(asked, general, out=np.zeros_like(asked), where=general > 0)
    return quotient


def vicrop_box(attention: Floats, image_wh: tuple[int, int], image_size_px: int) -> Box:
    """The crop, in source pixels.

    Args:
        attention: (rows, columns) over the image without its padding
        image_size_px: the side of the model's input
    Returns: a square of 1 to 2 times that side, cut at the image's edge; the whole image where it is smaller.
    """
    rows, columns = attention.shape
    cell_wh = image_wh[0] / columns, image_wh[1] / rows
    best: _Window | None = None
    for ratio in WINDOW_RATIOS:
        cells_wh = (
            max(1, min(int(image_size_px * ratio / cell_wh[0]), columns)),
            max(1, min(int(image_size_px * ratio / cell_wh[1]), rows)),
        )
        if cells_wh == (columns, rows):
            continue
        window = _best_window(attention, cells_wh, ratio)
        if best is None or window.contrast > best.contrast:
            best = window
    if best is None:
        return 0, 0, *image_wh
    return _box_px(best, cell_wh, image_wh, int(image_size_px * best.ratio))


@dataclass(frozen=True)
class _Window:
    """The best position of one window size."""

    ratio: float
    column: int
    row: int
    cells_wh: tuple[int, int]
    contrast: float  # to its direct neighbours, per cell


def _best_window(attention: Floats, cells_wh: tuple[int, int], ratio: float) -> _Window:
    width, height = cells_wh
    sums = np.lib.stride_tricks.sliding_window_view(attention, (height, width)).sum(axis=(2, 3))
    # Columns first, like the published loop: the order breaks ties.
    column, row = np.unravel_index(int(sums.T.argmax()), sums.T.shape)
    beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    around = [sums[y, x] for y, x in beside if 0 <= y < sums.shape[0] and 0 <= x < sums.shape[1]]
    contrast = float(sums[row, column] - np.mean(around)) / (width * height)
    return _Window(ratio, int(column), int(row), cells_wh, contrast)


def _box_px(window: _Window, cell_wh: tuple[float, float], image_wh: tuple[int, int], side_px: int) -> Box:
    """A square around the window's centre, moved into the image."""
    edges = []
    for axis, place in enumerate((window.column, window.row)):
        half, size = side_px // 2, image_wh[axis]
        centre = int(cell_wh[axis] * (place + window.cells_wh[axis] / 2))
        centre = min(max(centre, half), size - half)
        edges.append((max(0, centre - half), min(size, centre + half)))
    (x1, x2), (y1, y2) = edges
    return x1, y1, x2, y2
