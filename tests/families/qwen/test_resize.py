"""Sizes and pixel boxes: the official functions' cases, and the borders that they have none of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdrpn.errors import BadImage, BadInput
from sdrpn.families.qwen.grid import ResizedGrid, grown_box_px, scaled_box_px
from sdrpn.families.qwen.resize import MOST_RATIO, PixelBudget
from sdrpn.families.qwen.vision_spec import with_image_tokens
from sdrpn.method.grids import Box
from tests.families.qwen.official import map_cases, resize_cases, vision_3, vision_25


@pytest.mark.parametrize(("version", "smallest"), [("4.51.3", 28), ("4.57.1", 1)])
def test_sizes_are_those_of_transformers(version: str, smallest: int) -> None:
    cases = resize_cases(version)
    assert len(cases) >= 100
    for height, width, cell, least, most, expected in cases:
        budget = PixelBudget(cell, least * cell**2, most * cell**2, smallest)
        if expected == "ValueError":
            with pytest.raises(BadImage):
                budget.hw((width, height))
        else:
            assert budget.size_wh((width, height)) == (expected[1], expected[0]), (height, width)


@pytest.mark.parametrize(("scheme", "least_px"), [("qzoom", 28), ("sdrpn", 0)])
def test_boxes_in_pixels_are_the_official_ones(scheme: str, least_px: int) -> None:
    cases = [case for case in map_cases(scheme) if "box_cells" in case.facts]
    assert len(cases) >= 20
    for case in cases:
        hw = (case.facts["h"], case.facts["w"])
        for cell in (28, 32):
            expected = case.facts.get(f"box_px_{cell}")
            if expected is not None:
                scaled = scaled_box_px(case.facts["box_cells"], hw, case.image_wh, cell)
                found = grown_box_px(scaled, case.image_wh, least_px, slid=scheme == "qzoom")
                assert found == tuple(expected), case.facts


@pytest.mark.parametrize(
    ("cell_px", "hw", "image_wh", "box_cells", "slid", "official"),
    [
        (32, (55, 25), (1945, 1774), (5, 12, 25, 38), (388, 387, 1945, 1225), (389, 387, 1945, 1225)),
        (28, (40, 27), (1872, 3687), (12, 26, 27, 28), (831, 2396, 1872, 2580), (832, 2396, 1872, 2580)),
        (28, (21, 3), (1872, 886), (2, 3, 3, 17), (1247, 126, 1872, 717), (1248, 126, 1872, 717)),
        (28, (59, 52), (52, 32), (16, 45, 52, 47), (15, 3, 52, 32), None),  # its height grows as well
    ],
)
def test_a_box_that_float32_puts_beyond_the_picture(
    cell_px: int,
    hw: tuple[int, int],
    image_wh: tuple[int, int],
    box_cells: Box,
    slid: Box,
    official: Box | None,
) -> None:
    """Q-Zoom slides every box back, which may cost its first edge a pixel; SD-RPN cuts it off at the border.

    Figures are those of the official code for each, in PyTorch.
    """
    scaled = scaled_box_px(box_cells, hw, image_wh, cell_px)
    assert scaled[2] > image_wh[0]
    assert grown_box_px(scaled, image_wh) == slid
    if official is not None:
        assert grown_box_px(scaled, image_wh, 0, slid=False) == official
        assert grown_box_px(scaled, image_wh, slid=False) == official


def test_a_picture_smaller_than_a_cell() -> None:
    with pytest.raises(BadImage, match=r"the picture is 60 x 20 px; expected at least 28 px on each side: enlarge it"):
        vision_25().grid((60, 20)).hw  # noqa: B018
    assert vision_3().grid((60, 20)).hw == (2, 4)


def test_a_picture_too_long() -> None:
    with pytest.raises(BadImage, match=r"5601 x 28 px; expected a longer side of at most 200 times the shorter"):
        vision_25().grid((5601, 28)).hw  # noqa: B018
    assert vision_25().grid((5600, 28)).hw == (1, 200)


def test_a_long_picture_keeps_one_row() -> None:
    # The official code of Qwen2.5-VL's time rounds its height down to 0 here.
    assert vision_25(4, 128).grid((5600, 28)).hw == (1, 160)


@pytest.mark.parametrize(("least", "most"), [(3, 10), (11, 10), (0, 0)])
def test_an_impossible_budget(least: int, most: int) -> None:
    with pytest.raises(BadInput, match="least and the most image tokens are"):
        with_image_tokens(vision_25(), least, most)


@given(
    least=st.integers(4, 700),
    more=st.integers(0, 700),
    short=st.integers(28, 400),
    ratio=st.floats(1, MOST_RATIO),
)
def test_no_picture_has_more_tokens_than_the_spec_says(least: int, more: int, short: int, ratio: float) -> None:
    vision = vision_25(least, least + more)
    rows, columns = vision.grid((min(int(short * ratio), short * MOST_RATIO), short)).hw
    assert rows * columns <= vision.image_tokens


def test_that_bound_is_reached() -> None:
    """A budget of exactly 576 is exceeded by half in pictures that are two cells high and a little."""
    vision = vision_25(576, 576)
    most = max(math.prod(vision.grid((width, 40)).hw) for width in range(5_600, 5_800))
    assert most == vision.image_tokens == 864


@given(
    wh=st.tuples(st.integers(28, 900), st.integers(28, 900)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_box_of_cells_holds_its_pixels(
    wh: tuple[int, int], corner: tuple[float, float], share: tuple[float, float]
) -> None:
    grid = ResizedGrid(wh, vision_25(4, 400).budget)
    rows, columns = grid.hw
    x1, y1 = int(corner[0] * (columns - 1)), int(corner[1] * (rows - 1))
    cells = x1, y1, x1 + 1 + int(share[0] * (columns - x1 - 1)), y1 + 1 + int(share[1] * (rows - y1 - 1))
    left, top, right, bottom = grid.box_px_from_cells(cells)
    assert 0 <= left < right <= wh[0]
    assert 0 <= top < bottom <= wh[1]
    assert right - left >= 28
    assert bottom - top >= 28
    exact = np.array([cells[0] / columns, cells[1] / rows, cells[2] / columns, cells[3] / rows]) * [*wh, *wh]
    assert left <= exact[0] + 1e-3
    assert top <= exact[1] + 1e-3
    assert right >= exact[2] - 1 - 1e-3
    assert bottom >= exact[3] - 1 - 1e-3
    again = grid.box_cells_from_px((left, top, right, bottom))
    assert again[0] <= cells[0]
    assert again[1] <= cells[1]


def test_cells_of_pixels() -> None:
    grid = ResizedGrid((640, 480), PixelBudget(28, 4 * 784, 120 * 784))
    assert grid.hw == (9, 12)
    assert grid.box_cells_from_px((0, 0, 640, 480)) == (0, 0, 12, 9)
    assert grid.box_cells_from_px((320, 160, 321, 161)) == (6, 3, 7, 4)
