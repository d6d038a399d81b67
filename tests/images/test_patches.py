"""Patches of a resized picture, and the order in which its axes are resized."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.images.patches import columns_first, crop_patches, packed, picture_patches, resized
from tests.runtime.pictures.patched import Patched, noise


@pytest.mark.parametrize(
    ("image_wh", "size_wh", "expected"),
    [
        ((100, 300), (50, 199), True),
        ((100, 300), (50, 200), False),  # 100 rows less, 50 columns less
        ((640, 480), (644, 476), True),
        ((480, 640), (476, 644), False),
        ((100, 100), (200, 200), False),
        ((100, 100), (200, 100), False),
        ((100, 100), (100, 99), True),
    ],
)
def test_which_axis_is_resized_first(image_wh: tuple[int, int], size_wh: tuple[int, int], expected: bool) -> None:
    assert columns_first(image_wh, size_wh) is expected


@pytest.mark.skipif(Version(PIL.__version__) < Version("13"), reason="earlier releases resize rows first")
def test_pictures_are_resized_as_pillow_does_it() -> None:
    rng = np.random.default_rng(3)
    for number in range(200):
        width, height, to_width, to_height = (int(side) for side in rng.integers(1, 130, 4))
        picture = Image.fromarray(noise(width, height, number))
        expected = np.asarray(picture.resize((to_width, to_height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(np.asarray(resized(picture, (to_width, to_height))), expected)


def test_patches_of_a_token_follow_each_other() -> None:
    """Each pixel says where it is: row of 8, column of 12."""
    rows, columns = np.indices((8, 12), np.uint8)
    pixels = np.stack([rows, columns, rows * 12 + columns], axis=-1)
    vision = Patched(((12, 8),), patch_size_px=2, merge=2, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    found = np.rint(packed(pixels, vision) * 255).astype(int).reshape(24, 3, 2, 2)
    corners = found[:, :2, 0, 0].tolist()
    first_token, second_token = [[0, 0], [0, 2], [2, 0], [2, 2]], [[0, 4], [0, 6], [2, 4], [2, 6]]
    assert corners[:8] == first_token + second_token
    assert corners[12] == [4, 0]  # the second row of tokens
    assert found[5, 2].tolist() == [[6, 7], [18, 19]]


def test_a_crop_is_what_a_picture_of_its_pixels_is() -> None:
    pixels, vision = noise(50, 40), Patched(((16, 8),), 2, 2)
    cut = Image.fromarray(np.ascontiguousarray(pixels[3:33, 5:45]))
    crop = crop_patches(Image.fromarray(pixels), (5, 3, 45, 33), vision)
    np.testing.assert_array_equal(crop, picture_patches(cut, vision))


def test_what_is_refused() -> None:
    vision = Patched(((16, 8),), 2, 2)
    with pytest.raises(BadInput, match="has mode L; expected RGB"):
        picture_patches(Image.new("L", (9, 9)), vision)
    with pytest.raises(BadInput, match="extends beyond the image"):
        crop_patches(Image.new("RGB", (9, 9)), (0, 0, 10, 9), vision)
