"""What it sees with: every cell is one patch of pixels, multiplied once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdrpn.method.grids import Box

CELL_PX = 16  # of the source, where the grid has room
LONG_ROWS, LONG_COLUMNS, CROP_CELLS = 5, 8, 4


@dataclass(frozen=True)
class WideGrid:
    """The whole picture, stretched over h x w cells."""

    image_wh: tuple[int, int]
    hw: tuple[int, int]

    @property
    def extent_px(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, float(self.image_wh[0]), float(self.image_wh[1])

    @property
    def seen_box_px(self) -> Box:
        return 0, 0, *self.image_wh

    def box_px_from_cells(self, box_cells: object) -> Box | None:
        cells = np.asarray(box_cells, np.float64)
        scale = np.array([self.image_wh[0] / self.hw[1], self.image_wh[1] / self.hw[0]] * 2)
        x1, y1, x2, y2 = (int(edge) for edge in cells * scale)
        return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)

    def box_cells_from_px(self, box_xyxy_px: object) -> Box:
        pixels = np.asarray(box_xyxy_px, np.float64)
        exact = pixels * np.array([self.hw[1] / self.image_wh[0], self.hw[0] / self.image_wh[1]] * 2)
        (x1, y1), (x2, y2) = np.floor(exact[:2]).astype(int), np.ceil(exact[2:]).astype(int)
        return int(x1), int(y1), int(x2), int(y2)

    def crop_hw(self, box_xyxy_px: Box) -> tuple[int, int]:
        x1, y1, x2, y2 = box_xyxy_px
        return _cells(y2 - y1, CROP_CELLS), _cells(x2 - x1, CROP_CELLS)


@dataclass(frozen=True)
class WideSpec:
    """`patch_px`: the side of a cell, resized."""

    family: ClassVar[str] = "wide"
    patch_px: int = 4

    @property
    def image_tokens(self) -> int:
        return LONG_ROWS * LONG_COLUMNS

    def grid(self, image_wh: tuple[int, int]) -> WideGrid:
        return WideGrid(image_wh, (_cells(image_wh[1], LONG_ROWS), _cells(image_wh[0], LONG_COLUMNS)))


def _cells(length_px: int, most: int) -> int:
    return min(max(2, length_px // CELL_PX), most)
