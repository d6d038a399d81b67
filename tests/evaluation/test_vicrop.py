"""ViCrop's crop rule on maps where the right window can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.evaluation.vicrop import relative_map, vicrop_box


def test_a_cell_is_weighed_by_how_much_a_general_question_looks_there() -> None:
    asked, general = np.array([0.2, 0.2, 0.1, 0.0]), np.array([0.4, 0.1, 0.1, 0.0])
    assert relative_map(asked, general).tolist() == [0.5, 2.0, 1.0, 0.0]


def test_a_single_bright_cell_is_inside() -> None:
    attention = np.zeros((12, 12))
    attention[8, 3] = 1.0
    x1, y1, x2, y2 = vicrop_box(attention, (840, 840), 168)
    assert (x1 <= 3 * 70, x2 >= 4 * 70, y1 <= 8 * 70, y2 >= 9 * 70) == (True,) * 4
    # Two cells of 70 px fit the smallest window; the more cells, the less one stands out.
    assert (x2 - x1, y2 - y1) == (168, 168)


def test_a_block_takes_the_window_that_it_fills() -> None:
    """Among windows of 2, 3 and 4 cells per side, that of 3 loses most when it is moved off a block of 3 x 3."""
    attention = np.zeros((12, 12))
    attention[4:7, 5:8] = 1.0
    x1, y1, x2, y2 = vicrop_box(attention, (840, 840), 168)
    assert x2 - x1 == y2 - y1 == 2 * int(168 * 1.4 / 2)
    assert abs((x1 + x2) / 2 - 6.5 * 70) <= 1
    assert abs((y1 + y2) / 2 - 5.5 * 70) <= 1


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 11), (11, 0), (11, 11)])
def test_a_window_at_the_border_is_moved_into_the_image(row: int, column: int) -> None:
    attention = np.zeros((12, 12))
    attention[row, column] = 1.0
    x1, y1, x2, y2 = vicrop_box(attention, (840, 840), 168)
    assert (min(x1, y1) >= 0, max(x2, y2) <= 840) == (True, True)
    assert (x1 == 0) == (column == 0)
    assert (y2 == 840) == (row == 11)


def test_an_image_that_is_no_larger_than_the_model_sees_is_taken_whole() -> None:
    assert vicrop_box(np.random.default_rng(0).random((12, 12)), (168, 160), 168) == (0, 0, 168, 160)


def test_a_wide_image() -> None:
    attention = np.zeros((3, 12))
    attention[1, 9] = 1.0
    x1, y1, x2, y2 = vicrop_box(attention, (1200, 300), 336)
    assert (y1, y2) == (0, 300)
    assert x1 <= 900 < 1000 <= x2
