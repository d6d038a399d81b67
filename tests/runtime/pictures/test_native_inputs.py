"""What the native resize refuses, and in which words. Nothing of it may reach the loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

native: Any = pytest.importorskip("sdrpn._native", exc_type=ImportError)

PICTURE = np.zeros((8, 10, 3), np.uint8)
BOX = np.array([[0, 0, 10, 8]], np.int64)
FIVE_CHANNELS = np.zeros((8, 10, 5), np.uint8)


def call(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "picture": PICTURE,
        "boxes": BOX,
        "out": np.zeros((1, 3, 4, 4), np.float32),
        "filter": "bilinear",
        "colour": None,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "threads": 1,
    }
    native.prepare(**{**arguments, **changes})


def test_the_arguments_that_the_cases_change_are_good() -> None:
    call()


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"picture": [[1, 2, 3]]}, TypeError, r"the picture is a list; expected an array \(H, W, 3\) of uint8"),
        ({"picture": None}, TypeError, "the picture is a NoneType"),
        ({"picture": PICTURE.astype(np.float32)}, TypeError, "another dtype than uint8"),
        ({"picture": PICTURE.astype(np.int8)}, TypeError, "another dtype than uint8"),
        ({"picture": PICTURE[..., 0]}, ValueError, r"has the shape \(8, 10\); expected \(H, W, 3\)"),
        ({"picture": np.zeros((), np.uint8)}, ValueError, r"has the shape \(\)"),
        ({"picture": PICTURE.ravel()}, ValueError, r"has the shape \(240,\)"),
        ({"picture": PICTURE[:0]}, ValueError, r"has the shape \(0, 10, 3\)"),
        ({"picture": FIVE_CHANNELS}, ValueError, r"has the shape \(8, 10, 5\)"),
        ({"picture": FIVE_CHANNELS[..., :3]}, ValueError, r"strides are \(50, 5, 1\); expected whole pixels side by"),
        ({"picture": PICTURE[::-1]}, ValueError, r"strides are \(-30, 3, 1\)"),
        ({"picture": PICTURE[:, ::-1]}, ValueError, r"strides are \(30, -3, 1\)"),
        ({"picture": PICTURE[..., ::-1]}, ValueError, r"strides are \(30, 3, -1\)"),
        ({"picture": PICTURE.transpose(1, 0, 2)}, ValueError, r"strides are \(3, 30, 1\)"),
        ({"picture": np.broadcast_to(PICTURE[:1], (8, 10, 3))}, ValueError, r"strides are \(0, 3, 1\)"),
        ({"boxes": [[0, 0, 1, 1]]}, TypeError, r"boxes is a list; expected an array \(N, 4\) of int64"),
        ({"boxes": BOX.astype(np.int32)}, TypeError, "another dtype than int64"),
        ({"boxes": BOX.astype(float)}, TypeError, "another dtype than int64"),
        ({"boxes": BOX[0]}, ValueError, r"boxes have the shape \(4,\); expected \(N, 4\)"),
        ({"boxes": BOX[:0]}, ValueError, r"boxes have the shape \(0, 4\)"),
        ({"boxes": np.array([[2, 2, 2, 5]])}, ValueError, r"the box \(2, 2, 2, 5\) is empty"),
        ({"boxes": np.array([[5, 2, 2, 5]])}, ValueError, "is empty"),
        ({"boxes": np.array([[0, 0, 11, 8]])}, ValueError, r"\(0, 0, 11, 8\) leaves the picture of 10x8 px"),
        ({"boxes": np.array([[-1, 0, 5, 8]])}, ValueError, "leaves the picture"),
        ({"boxes": np.array([[10, 0, 12, 8]]), "colour": (0, 0, 0)}, ValueError, "has no pixel of the picture"),
        ({"boxes": np.array([[0, 0, 2**40, 8]]), "colour": (0, 0, 0)}, ValueError, "coordinate 1099511627776"),
        ({"out": [0.0]}, TypeError, r"out is a list; expected an array \(N, 3, R, S\)"),
        ({"out": np.zeros((1, 3, 4, 4))}, TypeError, "out has another dtype than float32 and float16"),
        ({"out": np.zeros((1, 3, 4, 4), np.int32)}, TypeError, "out has another dtype"),
        ({"out": np.zeros((2, 3, 4, 4), np.float32)}, ValueError, r"shape \(2, 3, 4, 4\); expected \(1, 3, R, S\)"),
        ({"out": np.zeros((3, 4, 4), np.float32)}, ValueError, r"shape \(3, 4, 4\)"),
        ({"out": np.zeros((1, 3, 0, 4), np.float32)}, ValueError, "a side of the result is 0 px"),
        ({"out": np.zeros((1, 3, 4, 8), np.float32)[..., ::2]}, ValueError, "out is not contiguous"),
        ({"out": np.zeros((1, 4, 4, 3), np.float32).transpose(0, 3, 1, 2)}, ValueError, "out is not contiguous"),
        ({"out": read_only(np.zeros((1, 3, 4, 4), np.float32))}, ValueError, "out is read-only"),
        ({"filter": "lanczos"}, ValueError, "filter is 'lanczos'; expected 'bilinear' or 'bicubic'"),
        ({"filter": 3}, TypeError, "filter is a int; expected a text"),
        ({"colour": (0, 0, 256)}, TypeError, r"colour is \(0, 0, 256\); expected three whole numbers"),
        ({"colour": (0, 0)}, TypeError, "colour is"),
        ({"mean": (0.5, float("nan"), 0.5)}, ValueError, r"mean is \(0.5, nan, 0.5\); expected three finite numbers"),
        ({"mean": (1e300, 0.5, 0.5)}, ValueError, "expected three finite numbers"),
        ({"mean": "abc"}, TypeError, "mean is 'abc'; expected three numbers"),
        ({"std": (0.2, 0.0, 0.2)}, ValueError, "expected three finite numbers above 0"),
        ({"std": (0.2, float("inf"), 0.2)}, ValueError, "std is"),
        ({"threads": 0}, ValueError, "threads is 0; expected 1 to"),
        ({"threads": -3}, ValueError, "threads is -3"),
        ({"threads": 100_000}, ValueError, "the cores of this machine"),
        ({"threads": "two"}, TypeError, "incompatible function arguments"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(**changes)


def test_a_single_row_may_have_any_stride() -> None:
    call(picture=np.broadcast_to(PICTURE[:1], (1, 10, 3)), boxes=np.array([[0, 0, 10, 1]]))
