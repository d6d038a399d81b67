"""A frame is a picture of one moment, and nothing else becomes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.errors import BadImage
from sdrpn.frames.frame import Frame, rgb_pixels


def test_size() -> None:
    assert Frame(np.zeros((4, 6, 3), np.uint8)).size_wh == (6, 4)


@pytest.mark.parametrize("array", [np.zeros((4, 6), np.uint8), np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 3))])
def test_other_arrays(array: npt.NDArray[Any]) -> None:
    with pytest.raises(BadImage, match=r"expected \(H, W, 3\) uint8"):
        Frame(array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1(dtype: type) -> None:
    values: npt.NDArray[Any] = np.array([[[0, 0.5, 1]]], dtype)
    assert rgb_pixels(values).tolist() == [[[0, 128, 255]]]


def test_bytes_are_not_copied() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert rgb_pixels(pixels) is pixels


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"a frame has 1 of 12 values that are NaN or infinite"),
        (np.inf, r"a frame has 1 of 12 values that are NaN or infinite"),
        (255.0, r"a frame of float32 has values from 0 to 255; expected 0 to 1"),
        (-0.5, r"has values from -0\.5 to 0"),
    ],
)
def test_floats_that_are_no_picture(value: float, message: str) -> None:
    pixels = np.zeros((2, 2, 3), np.float32)
    pixels[1, 1, 1] = value
    with pytest.raises(BadImage, match=message):
        rgb_pixels(pixels)
