"""The two resizes of the official evaluation: sizes, grids, and how often they differ from a single one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadImage, BadInput
from sdrpn.families.qwen.resize import rounded_wh
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, with_resize
from sdrpn.images.patches import crop_patches, picture_patches
from tests.families.qwen.official import vision_3, vision_25

Maker = Callable[[int, int], Qwen25Vision | Qwen3Vision]


@pytest.mark.parametrize(
    ("image_wh", "expected"),
    [
        ((640, 480), (644, 476)),
        ((28, 28), (56, 56)),  # at least four cells
        ((2000, 10), (1988, 28)),  # one cell high, where the processor would enlarge it
        ((14, 300), (28, 308)),
        ((42, 70), (56, 56)),  # halves to even
        ((8000, 8000), (3584, 3584)),  # 16,384 cells of 28 px
    ],
)
def test_the_first_resize(image_wh: tuple[int, int], expected: tuple[int, int]) -> None:
    """By hand, from the rule of qwen-vl-utils."""
    assert rounded_wh(image_wh) == expected


def test_pictures_too_long_before_or_after_the_first_resize() -> None:
    official = with_resize(vision_25(256, 576), "official")
    with pytest.raises(BadImage, match="5601 x 28 px; expected a longer side of at most 200 times"):
        official.picture_sizes((5601, 28))
    with pytest.raises(BadImage, match="5796 x 28 px; expected a longer side of at most 200 times"):
        official.picture_sizes((5800, 29))


@pytest.mark.parametrize(("maker", "share"), [(vision_25, 0.21), (vision_3, 0.23)], ids=["2.5", "3"])
def test_how_many_grids_differ(maker: Maker, share: float) -> None:
    """The official pipeline was counted with sizes of the same range."""
    once = maker(256, 576)
    official = with_resize(once, "official")
    sizes = np.random.default_rng(0).integers(200, 3001, (4000, 2)).tolist()
    differ = sum(once.grid((w, h)).hw != official.grid((w, h)).hw for w, h in sizes)
    assert abs(differ / len(sizes) - share) < 0.02


def test_pixels_are_resized_twice_and_crops_once() -> None:
    once = vision_25(4, 16)
    official = with_resize(once, "official")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 131, 3), np.uint8))
    assert list(official.picture_sizes(picture.size)) == [(140, 84), (140, 84)]
    # Once more would change nothing: the size is kept.
    between = picture.resize((140, 84), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(picture_patches(picture, official), picture_patches(between, once))
    box = (3, 5, 80, 70)
    np.testing.assert_array_equal(crop_patches(picture, box, official), crop_patches(picture, box, once))


def test_the_map_lies_over_the_source_in_both() -> None:
    official = with_resize(vision_25(256, 576), "official")
    grid = official.grid((1234, 777))
    rows, columns = grid.hw
    assert grid.hw == official.budget.hw((1232, 784))
    assert grid.box_px_from_cells((0, 0, columns, rows)) == (0, 0, 1234, 777)


def test_another_word() -> None:
    with pytest.raises(BadInput, match="resize is 'twice'; expected once or official"):
        dataclasses.replace(vision_25(), resize="twice")  # type: ignore[arg-type]
