"""A frame is a picture of one moment, and nothing else becomes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.errors import BadImage
from sdrpn.frames.frame import Frame


def test_size() -> None:
    assert Frame(np.zeros((4, 6, 3), np.uint8)).size_wh == (6, 4)


@pytest.mark.parametrize("array", [np.zeros((4, 6), np.uint8), np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 3))])
def test_other_arrays(array: npt.NDArray[Any]) -> None:
    with pytest.raises(BadImage, match=r"expected \(H, W, 3\) uint8"):
        Frame(array)
