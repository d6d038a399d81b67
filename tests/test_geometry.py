"""Cells and pixels, in both directions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdrpn.errors import BadInput
from sdrpn.geometry import Box, PaddedGrid

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
