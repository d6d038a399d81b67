"""Patches made by the native module against Pillow and NumPy: every bit, for random and extreme pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.images.patches import columns_first, crop_patches, picture_patches
from sdrpn.method.grids import Box
from sdrpn.runtime.pictures import pixels as written
from sdrpn.runtime.pictures.picture import open_picture
from tests.runtime.pictures.patched import Patched, noise

native: Any = pytest.importorskip("sdrpn._native", exc_type=ImportError)

THREADS = min(2, native.cores())


@dataclass(frozen=True)
class Case:
    image_wh: tuple[int, int]
    box: Box
    tokens_wh: tuple[int, int]
    patch: int
    merge: int

    @property
    def vision(self) -> Patched:
        cell = self.patch * self.merge
        return Patched(((self.tokens_wh[0] * cell, self.tokens_wh[1] * cell),), self.patch, self.merge)


def made(case: Case, picture: npt.NDArray[np.uint8], threads: int = THREADS, plain: bool = False) -> Any:
    vision = case.vision
    (size_wh,) = vision.sizes
    out = np.full((size_wh[0] * size_wh[1] // case.patch**2, 3 * case.patch**2), np.nan, np.float32)
    x1, y1, x2, y2 = case.box
    native.prepare_patches(
        picture,
        np.array([case.box], np.int64),
        out,
        size_wh=size_wh,
        patch=case.patch,
        merge=case.merge,
        columns_first=columns_first((x2 - x1, y2 - y1), size_wh),
        mean=vision.image_mean,
        std=vision.image_std,
        threads=threads,
        plain=plain,
    )
    return out


def specified(case: Case, picture: npt.NDArray[np.uint8]) -> Any:
    return crop_patches(Image.fromarray(np.ascontiguousarray(picture)), case.box, case.vision)


def random_case(rng: np.random.Generator) -> Case:
    width, height = (int(side) for side in rng.integers(1, 200, 2))
    x1, y1 = int(rng.integers(0, width)), int(rng.integers(0, height))
    box = x1, y1, int(rng.integers(x1, width)) + 1, int(rng.integers(y1, height)) + 1
    tokens = int(rng.integers(1, 7)), int(rng.integers(1, 7))
    return Case((width, height), box, tokens, int(rng.choice([1, 3, 14, 16])), int(rng.choice([1, 2, 3])))


@pytest.mark.parametrize("plain", [False, True], ids=["vectors", "as the GPU"])
def test_random_pictures_boxes_and_sizes(plain: bool) -> None:
    rng = np.random.default_rng(11)
    orders = set()
    for number in range(400):
        case = random_case(rng)
        picture = noise(*case.image_wh, number)
        np.testing.assert_array_equal(
            made(case, picture, 1 + number % THREADS, plain), specified(case, picture), str(case)
        )
        x1, y1, x2, y2 = case.box
        orders.add(columns_first((x2 - x1, y2 - y1), case.vision.sizes[0]))
    assert orders == {False, True}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_hypothesis_finds(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    case = Case((width, height), box, tokens, data.draw(st.integers(1, 17)), data.draw(st.integers(1, 3)))
    picture = noise(width, height, data.draw(st.integers(0, 9)))
    np.testing.assert_array_equal(made(case, picture), specified(case, picture))


@pytest.mark.parametrize(
    ("image_wh", "tokens_wh"),
    [
        ((1, 1), (2, 2)),
        ((28, 28), (2, 2)),
        ((4000, 30), (46, 1)),
        ((30, 4000), (1, 46)),
        ((6000, 4000), (24, 16)),
        ((2000, 3000), (16, 24)),
        ((3, 1200), (1, 40)),
        ((1200, 3), (40, 1)),
        ((640, 480), (23, 17)),
    ],
)
@pytest.mark.parametrize("threads", sorted({1, THREADS}))
def test_extreme_pictures(image_wh: tuple[int, int], tokens_wh: tuple[int, int], threads: int) -> None:
    case = Case(image_wh, (0, 0, *image_wh), tokens_wh, 14, 2)
    picture = noise(*image_wh)
    np.testing.assert_array_equal(made(case, picture, threads), specified(case, picture))


def test_narrow_boxes_read_nothing_beyond_the_picture() -> None:
    """Whole vectors fit into a row, or just do not; the sanitizers see what is read."""
    for width in range(1, 40):
        for height in (1, 2, 60):
            picture = noise(width, height, width)
            for box in ((0, 0, width, height), (width // 2, height - 1, width, height)):
                case = Case((width, height), box, (2, 1), 4, 2)
                expected = specified(case, picture)
                for plain in (False, True):
                    np.testing.assert_array_equal(made(case, picture, plain=plain), expected, f"{width}x{height} {box}")


def test_rows_of_a_wider_array_are_read_in_place() -> None:
    view = noise(100, 400)[10:390:2, 20:70]
    assert not view.flags.c_contiguous
    case = Case((50, 190), (3, 1, 49, 189), (2, 2), 14, 2)
    np.testing.assert_array_equal(made(case, view), specified(case, view))


@pytest.mark.parametrize("path", ["native", "pillow"])
@pytest.mark.parametrize("sizes", [((56, 84),), ((60, 91), (56, 84))], ids=["once", "twice"])
def test_a_picture_writes_what_is_specified(
    sizes: tuple[tuple[int, int], ...], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "pillow":
        monkeypatch.setattr("sdrpn.runtime.pictures.picture.native_module", lambda name="_native": None)
        monkeypatch.setattr(written, "native_module", lambda name="_native": None)
    pixels, vision, box = noise(70, 200), Patched(sizes, 14, 2), (3, 5, 68, 190)
    picture = open_picture(pixels)
    whole, crop = (np.empty((24, 588), np.float32) for _ in range(2))
    picture.write_patches(vision, whole)
    picture.write_crop_patches(box, vision, crop)
    image = picture.as_image()
    np.testing.assert_array_equal(whole, picture_patches(image, vision))
    np.testing.assert_array_equal(crop, crop_patches(image, box, vision))
    with pytest.raises(BadInput, match="extends beyond the image"):
        picture.write_crop_patches((0, 0, 71, 5), vision, crop)


GOOD: dict[str, Any] = {
    "picture": np.zeros((8, 10, 3), np.uint8),
    "boxes": np.array([[0, 0, 10, 8]], np.int64),
    "out": np.zeros((8, 12), np.float32),
    "size_wh": (8, 4),
    "patch": 2,
    "merge": 2,
    "columns_first": False,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 0.2),
}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"boxes": np.array([[0, 0, 1, 1]] * 2)}, ValueError, "there are 2 boxes; expected one"),
        ({"boxes": np.array([[0, 0, 11, 8]])}, ValueError, "leaves the picture of 10x8 px"),
        ({"size_wh": (8, 6)}, ValueError, r"size_wh is \(8, 6\); expected multiples of 4"),
        ({"size_wh": (0, 4)}, ValueError, "a side of the result is 0 px; expected 1 to 1000000"),
        ({"size_wh": 8}, TypeError, "size_wh is 8; expected two whole numbers"),
        ({"patch": 0}, ValueError, "patch is 0 and merge 2; expected 1 to 256"),
        ({"merge": 300}, ValueError, "patch is 2 and merge 300"),
        ({"out": np.zeros((8, 13), np.float32)}, ValueError, r"shape \(8, 13\); expected \(8, 12\)"),
        ({"out": np.zeros((7, 12), np.float32)}, ValueError, r"shape \(7, 12\); expected \(8, 12\)"),
        ({"out": np.zeros((8, 12))}, TypeError, "out has another dtype than float32"),
        ({"out": np.zeros((8, 24), np.float32)[:, ::2]}, ValueError, "out is not contiguous"),
        ({"out": np.zeros((12, 8), np.float32).T}, ValueError, "out is not contiguous"),
        ({"out": [1.0]}, TypeError, r"out is a list; expected an array \(patches, numbers\)"),
        ({"std": (0.2, 0.0, 0.2)}, ValueError, "expected three finite numbers above 0"),
        ({"threads": 0}, ValueError, "threads is 0; expected 1 to"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    native.prepare_patches(**GOOD)
    with pytest.raises(error, match=match):
        native.prepare_patches(**{**GOOD, **changes})
