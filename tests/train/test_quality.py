"""Agreement with labels, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdrpn.train.quality import Quality, measure_quality

IGNORED = -100


def quality_of(logits: list[float], labels: list[int]) -> Quality:
    side = math.isqrt(len(labels))
    shape = 1, side, side
    return measure_quality(np.array(logits, np.float32).reshape(shape), np.array(labels, np.int8).reshape(shape))


def test_by_hand() -> None:
    # 3 x 3 cells. Sure of a hit, then a miss, then a hit; the ignored cell is the surest and plays no part.
    logits = [9.0, 3.0, 2.0, 1.0, *[-9.0] * 5]
    labels = [IGNORED, 1, 0, 1, *[0] * 5]
    found = quality_of(logits, labels)
    assert found.samples == 1
    assert found.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found.curve[0] == (0.5, 1.0)
    assert found.curve[2] == pytest.approx((1.0, 2 / 3))
    at_half = next(threshold for threshold in found.thresholds if threshold.threshold == 0.5)
    assert (at_half.recall, at_half.precision, at_half.cell_iou) == pytest.approx((1.0, 2 / 3, 2 / 3))


def test_a_perfect_map_has_the_box_that_is_cropped() -> None:
    labels = np.zeros((8, 8), np.int8)
    labels[2:5, 3:6] = 1
    found = quality_of((labels.ravel() * 18.0 - 9).tolist(), labels.ravel().tolist())
    assert found.average_precision == 1.0
    assert found.best.box_iou == 1.0
    # Blurring spreads the edge: a low threshold crops a cell more on every side.
    low = found.thresholds[1]
    assert (low.threshold, low.box_iou) == pytest.approx((0.1, 9 / 25))
    # A box of 3 x 3 in the middle, at 2.5 to 5.5, shares 2.5 x 2.5 cells with the label.
    assert found.centre_box_iou == pytest.approx(6.25 / (18 - 6.25))


def test_no_box_is_drawn_around_a_sink() -> None:
    labels = np.zeros((1, 8, 8), np.int8)
    labels[0, 4:7, 4:7] = 1
    logits = labels * np.float32(18) - 9
    logits[0, :3, :3] = 9  # looked at whatever is asked
    kept = np.ones((8, 8), np.bool_)
    kept[:3, :3] = False
    assert measure_quality(logits, labels).best.box_iou < 0.5
    assert measure_quality(logits, labels, [kept]).best.box_iou == 1.0
    assert measure_quality(logits, labels, [None]) == measure_quality(logits, labels)


def test_nothing_fires() -> None:
    found = quality_of([-20.0] * 4, [1, 0, 0, 0])
    assert (found.best.box_iou, found.best.recall, found.best.precision) == (0.0, 0.0, 1.0)


def test_equally_sure_cells_come_together() -> None:
    found = quality_of([0.0] * 4, [0, 1, 0, 0])
    assert found.curve == ((1.0, 0.25),)
    assert math.isclose(found.average_precision, 0.25)


def test_samples_without_foreground_do_not_count() -> None:
    logits = np.zeros((2, 2, 2), np.float32)
    labels = np.array([[[0, 0], [0, 0]], [[0, 1], [0, 0]]], np.int8)
    assert measure_quality(logits, labels).samples == 1
    with pytest.raises(ValueError, match="no sample has foreground"):
        measure_quality(logits[:1], labels[:1])


def test_a_grid_that_is_no_square() -> None:
    labels = np.zeros((1, 2, 6), np.int8)
    labels[0, :, 1:3] = 1
    found = measure_quality(labels * np.float32(18) - 9, labels)
    # A box of 2 x 2 in the middle of 6 columns, at 2 to 4, shares one column with the label.
    assert found.centre_box_iou == pytest.approx(2 / 6)
    assert found.best.box_iou == 1.0
