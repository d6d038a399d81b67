"""Cells and pixels, in both directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.images.pixels import base_picture
from sdrpn.method.geometry import Fit, PaddedGrid
from sdrpn.method.grids import Box, centre_px

SIZES = st.one_of(st.integers(1, 40), st.integers(1, 12_000))
GRIDS = st.sampled_from([(336, 24), (168, 12), (224, 16)])


@st.composite
def boxes_within(draw: st.DrawFn, width: int, height: int) -> Box:
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))


@pytest.mark.parametrize(
    ("image_wh", "box_cells", "box_px"),
    [
        ((336, 336), (0, 0, 24, 24), (0, 0, 336, 336)),
        ((336, 336), (3, 4, 5, 6), (42, 56, 70, 84)),
        ((640, 480), (5, 8, 14, 16), (133, 133, 373, 346)),
        ((300, 900), (9, 3, 15, 7), (37, 112, 262, 262)),
        ((640, 480), (0, 0, 24, 24), (0, 0, 640, 480)),  # padding is cut off
        ((1, 1), (0, 0, 3, 3), (0, 0, 1, 1)),  # truncation alone leaves 0..0
        ((1, 10_000), (10, 3, 12, 6), (0, 1250, 1, 2500)),  # the column of one pixel, left of the formula's middle
        ((10_000, 1), (3, 11, 6, 14), (1250, 0, 2500, 1)),
        ((640, 480), (5, 0, 14, 3), None),  # above the image
        ((640, 480), (5, 21, 14, 24), None),
        ((300, 900), (0, 5, 8, 9), None),
        ((300, 900), (16, 5, 24, 9), None),
    ],
)
def test_cells_to_pixels(image_wh: tuple[int, int], box_cells: Box, box_px: Box | None) -> None:
    assert PaddedGrid(image_wh, 336, 24).box_px_from_cells(box_cells) == box_px


@pytest.mark.parametrize(
    ("image_wh", "box_px", "box_cells"),
    [
        ((336, 336), (0, 0, 336, 336), (0, 0, 24, 24)),
        ((336, 336), (42, 56, 70, 84), (3, 4, 5, 6)),
        ((336, 336), (41, 56, 71, 84), (2, 4, 6, 6)),
        ((1, 1), (0, 0, 1, 1), (0, 0, 24, 24)),
    ],
)
def test_pixels_to_cells(image_wh: tuple[int, int], box_px: Box, box_cells: Box) -> None:
    assert PaddedGrid(image_wh, 336, 24).box_cells_from_px(box_px) == box_cells


@pytest.mark.parametrize("image_wh", [(0, 10), (10, 0)])
def test_no_size_no_geometry(image_wh: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="expected sizes of at least 1"):
        PaddedGrid(image_wh, 336, 24)


@given(data=st.data(), width=SIZES, height=SIZES, grid=GRIDS)
def test_a_pixel_box_lies_within_its_cells(data: st.DataObject, width: int, height: int, grid: tuple[int, int]) -> None:
    box = data.draw(boxes_within(width, height))
    geometry = PaddedGrid((width, height), *grid)
    back = geometry.box_px_from_cells(geometry.box_cells_from_px(box))
    # The formula's padding is off by up to half a pixel of the R x R image (`int(size * r)` can even be R - 1 on the
    # long side), and float32 can put a cell border a hair below a whole pixel, which is then truncated.
    slack = 1 + math.ceil(0.5 / geometry.scale)
    assert back is not None
    assert back[0] <= box[0] + slack
    assert back[1] <= box[1] + slack
    assert back[2] >= box[2] - slack
    assert back[3] >= box[3] - slack


@given(data=st.data(), width=SIZES, height=SIZES, grid=GRIDS)
def test_every_crop_has_pixels_of_the_image(
    data: st.DataObject, width: int, height: int, grid: tuple[int, int]
) -> None:
    geometry = PaddedGrid((width, height), *grid)
    cells = data.draw(boxes_within(geometry.grid_side, geometry.grid_side))
    box = geometry.box_px_from_cells(cells)
    if box is None:
        assert not geometry.shows_image(cells)
    else:
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("image_wh", [(640, 480), (480, 640), (336, 336), (1000, 100)])
def test_the_extent_is_where_the_cells_lie(image_wh: tuple[int, int], fit: Fit) -> None:
    """Where a cell shows the image alone, its centre is the middle of its pixels."""
    grid = PaddedGrid(image_wh, 336, 24, fit)
    assert grid.hw == grid.crop_hw((0, 0, 1, 1)) == (24, 24)
    for column, row in ((11, 12), (12, 11), (12, 12)):
        x1, y1, x2, y2 = grid.box_px_from_cells((column, row, column + 1, row + 1)) or (0, 0, 0, 0)
        assert centre_px(grid, row, column) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=1)
    left, top, right, bottom = grid.extent_px
    assert (right - left, bottom - top) == pytest.approx((336 / grid.scale,) * 2)


@pytest.mark.parametrize("image_wh", [(640, 480), (480, 640), (336, 336), (1000, 100), (337, 336)])
def test_the_cells_of_a_cut_picture_cover_its_middle(image_wh: tuple[int, int]) -> None:
    grid = PaddedGrid(image_wh, 336, 24, "crop")
    x1, y1, x2, y2 = grid.seen_box_px
    shorter = min(image_wh)
    assert abs((x2 - x1) - shorter) <= 2
    assert abs((y2 - y1) - shorter) <= 2
    assert abs((x1 + x2) - image_wh[0]) <= 3
    assert abs((y1 + y2) - image_wh[1]) <= 3
    for box in ((0, 0, 1, 1), (5, 7, 9, 8), (23, 23, 24, 24)):
        pixels = grid.box_px_from_cells(box)
        assert pixels is not None
        found = grid.box_cells_from_px(pixels)
        assert all(abs(side - other) <= 1 for side, other in zip(found, box, strict=True))


def test_a_marked_cell_is_where_the_cut_picture_shows_it() -> None:
    """The pixel that lights a cell up in what the model sees lies in the box of that cell."""
    vision = VisionSpec(image_size_px=336, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64, fit="crop")
    for size, spot in (((900, 400), (455, 120)), ((300, 800), (80, 500))):
        image = Image.new("RGB", size)
        image.paste((255, 255, 255), (spot[0] - 3, spot[1] - 3, spot[0] + 4, spot[1] + 4))
        row, column = np.unravel_index(np.asarray(base_picture(image, vision).convert("L")).argmax(), (336, 336))
        cell = int(column) // 14, int(row) // 14
        box = vision.grid(size).box_px_from_cells((*cell, cell[0] + 1, cell[1] + 1))
        assert box is not None
        assert box[0] - 4 <= spot[0] <= box[2] + 4
        assert box[1] - 4 <= spot[1] <= box[3] + 4
