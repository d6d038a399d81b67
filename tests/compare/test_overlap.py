"""How much two sets of boxes both cover."""

from __future__ import annotations

import pytest

from sdrpn.compare.overlap import overlap
from sdrpn.method.grids import Box

ONE: Box = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("found", "expected", "iou"),
    [
        ([], [], 1.0),
        ([ONE], [], 0.0),
        ([ONE], [ONE], 1.0),
        ([ONE], [(10, 0, 20, 10)], 0.0),
        ([ONE], [(5, 0, 15, 10)], 50 / 150),
        ([(0, 0, 5, 10), (5, 0, 10, 10)], [ONE], 1.0),  # two halves cover what one does
        ([ONE, ONE], [ONE], 1.0),  # what is covered twice counts once
        ([ONE, (20, 20, 30, 30)], [ONE], 0.5),
        ([(2, 3, 7, 9)], [ONE], 30 / 100),
    ],
)
def test_overlap(found: list[Box], expected: list[Box], iou: float) -> None:
    assert overlap(found, expected) == pytest.approx(iou)
    assert overlap(expected, found) == pytest.approx(iou)
