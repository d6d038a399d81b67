"""The size to which a picture is resized: whole cells, a budget of pixels, the aspect ratio kept as far as that allows.

Follows `smart_resize` of transformers' Qwen2-VL image processor. The official evaluation resizes every picture by
qwen-vl-utils before, to multiples of 28 px ("official"); crops are resized once in either way. Arithmetic alone; reads
no picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdrpn.errors import BadImage, BadInput

__all__ = ["MOST_RATIO", "PixelBudget", "rounded_wh"]


MOST_RATIO = 200  # of the longer to the shorter side; the official processor refuses more
_MOST_PIXELS = 2**28
_ROUNDED_CELL_PX, _ROUNDED_LEAST, _ROUNDED_MOST = 28, 4 * 28**2, 16384 * 28**2  # of qwen-vl-utils, for both families


@dataclass(frozen=True)
class PixelBudget:
    """How large a picture may become.

    cell_px: side of an image token's cell in the resized picture: patch times merge
    least, most: pixels of the resized picture
    smallest_px: a picture with a shorter side is refused
    """

    cell_px: int
    least: int
    most: int
    smallest_px: int = 1

    def __post_init__(self) -> None:
        if self.cell_px < 1:
            raise BadInput(f"cell_px is {self.cell_px}; expected a whole number of at least 1")
        if not self.cell_px**2 <= self.least <= self.most <= _MOST_PIXELS:
            raise BadInput(
                f"the least and the most pixels of a picture are {self.least} and {self.most}; expected "
                f"{self.cell_px**2} (one image token) <= least <= most <= {_MOST_PIXELS}"
            )

    @property
    def most_cells(self) -> int:
        """The most cells that any accepted picture becomes.

        A small picture is rounded up to the least pixels and may so exceed the most; a long one is one cell high,
        however many that leaves for its length.
        """
        area = self.cell_px**2
        least, most = self.least / area, self.most / area
        return max(math.floor(most), math.floor(math.sqrt(MOST_RATIO * most)), _most_rounded_up(least))

    def hw(self, image_wh: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of cells of a picture. Raises BadImage for one too small or too long."""
        self._require(*image_wh)
        return self._hw(image_wh, 0)

    def _hw(self, image_wh: tuple[int, int], least_cells: int) -> tuple[int, int]:
        """`least_cells`: of either side, before the budget is applied."""
        width, height = image_wh
        # Half to even, as Python rounds.
        rows, columns = (max(least_cells, round(side / self.cell_px)) for side in (height, width))
        pixels = rows * columns * self.cell_px**2
        if pixels > self.most:
            shrink = math.sqrt((height * width) / self.most)
            return (
                max(1, math.floor(height / shrink / self.cell_px)),
                max(1, math.floor(width / shrink / self.cell_px)),
            )
        if pixels < self.least:
            grow = math.sqrt(self.least / (height * width))
            return math.ceil(height * grow / self.cell_px), math.ceil(width * grow / self.cell_px)
        return rows, columns

    def size_wh(self, image_wh: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the resized picture, in pixels. Raises BadImage as `hw` does."""
        rows, columns = self.hw(image_wh)
        return columns * self.cell_px, rows * self.cell_px

    def accepts(self, image_wh: tuple[int, int]) -> bool:
        """Whether `hw` has an answer."""
        shorter, longer = sorted(image_wh)
        return shorter >= max(1, self.smallest_px) and longer <= MOST_RATIO * shorter

    def _require(self, width: int, height: int) -> None:
        if self.accepts((width, height)):
            return
        if min(width, height) < max(1, self.smallest_px):
            expected = f"at least {max(1, self.smallest_px)} px on each side: enlarge it"
        else:
            expected = f"a longer side of at most {MOST_RATIO} times the shorter: cut it"
        raise BadImage(f"the picture is {width} x {height} px; expected {expected}")


def rounded_wh(image_wh: tuple[int, int]) -> tuple[int, int]:
    """The size to which qwen-vl-utils resizes a picture before the processor does. Raises BadImage for one too long."""
    budget = PixelBudget(_ROUNDED_CELL_PX, _ROUNDED_LEAST, _ROUNDED_MOST)
    budget._require(*image_wh)
    rows, columns = budget._hw(image_wh, 1)
    return columns * _ROUNDED_CELL_PX, rows * _ROUNDED_CELL_PX


def _most_rounded_up(cells: float) -> int:
    """The most cells of a picture of `cells` cells whose two sides, of a ratio up to MOST_RATIO, are rounded up."""
    shortest = math.sqrt(cells / MOST_RATIO)
    most = 0
    for side in range(math.ceil(shortest), math.ceil(math.sqrt(cells)) + 1):
        lowest = max(side - 1.0, shortest)  # what is rounded up to `side` is more than this
        most = max(most, side * math.ceil(cells / lowest))
    return most
