"""Overlap of crops and true boxes, on figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.evaluation.region import mean_zoom, region_quality
from sdrpn.method.roi import Crop

TRUTH = (10, 10, 30, 20)  # 200 px


@pytest.mark.parametrize(
    ("crops", "iou", "recall", "contains"),
    [
        ([], 0.0, 0.0, False),
        ([TRUTH], 1.0, 1.0, True),
        ([(10, 10, 30, 40)], 200 / 600, 1.0, True),
        ([(20, 10, 40, 20)], 100 / 300, 0.5, False),
        ([(50, 50, 60, 60)], 0.0, 0.0, False),
        ([(0, 0, 20, 40), (20, 0, 40, 40)], 200 / 1600, 1.0, False),  # cut in two by the crops
        ([(0, 0, 20, 40), (0, 0, 40, 40)], 200 / 1600, 1.0, True),  # what lies in both counts once
    ],
)
def test_boxes(crops: list[tuple[int, int, int, int]], iou: float, recall: float, contains: bool) -> None:
    found = region_quality([Crop(box) for box in crops], [TRUTH], None)
    assert (found.iou, found.recall) == pytest.approx((iou, recall))
    assert found.contains is contains


def test_only_the_cells_that_were_kept_count() -> None:
    """The upper left four of the 4 x 4 cells of a crop of 40 x 40 px: x 0..20, y 0..20."""
    keep = np.zeros((4, 4), np.bool_)
    keep[:2, :2] = True
    found = region_quality([Crop((0, 0, 40, 40), keep_cells=keep)], [TRUTH], None)
    assert found.recall == pytest.approx(100 / 200)
    assert found.iou == pytest.approx(100 / (400 + 200 - 100))
    assert not found.contains
    keep[:2, 2] = True
    assert region_quality([Crop((0, 0, 40, 40), keep_cells=keep)], [TRUTH], None).contains


def test_several_true_boxes() -> None:
    other = (100, 100, 110, 110)  # 100 px
    found = region_quality([Crop(TRUTH)], [TRUTH, other], (105.0, 105.0))
    assert found.recall == pytest.approx(200 / 300)
    assert found.iou == pytest.approx(200 / 300)
    assert (found.contains, found.point_in_box) == (False, True)
    assert region_quality([Crop(TRUTH), Crop(other)], [TRUTH, other], None).contains


@pytest.mark.parametrize(
    ("point", "inside"), [((10, 10), True), ((29.9, 19.9), True), ((30, 15), False), (None, False)]
)
def test_the_point(point: tuple[float, float] | None, inside: bool) -> None:
    assert region_quality([], [TRUTH], point).point_in_box is inside


def test_zoom() -> None:
    """A crop of a quarter of the longer side shows everything four times as large."""
    assert mean_zoom([Crop((0, 0, 200, 200))], (800, 600)) == pytest.approx(4)
    assert mean_zoom([Crop((0, 0, 200, 50))], (800, 600)) == pytest.approx(8)
    assert mean_zoom([Crop((0, 0, 200, 200)), Crop((0, 0, 400, 400))], (800, 600)) == pytest.approx(3)
    assert mean_zoom([], (800, 600)) is None
