"""Pictures that are not resized twice: the same input, crops and patches, and a name by what the model sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.runtime.pictures.picture import Picture, open_picture
from sdrpn.runtime.pictures.seen import SeenPicture
from tests.pictures import photo

VISION = VisionSpec(image_size_px=56, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
BOX = (10, 20, 60, 90)


def base_of(picture: Picture, dtype: type = np.float32, vision: VisionSpec = VISION) -> npt.NDArray[np.float32]:
    out: npt.NDArray[np.float32] = np.empty((1, 3, vision.image_size_px, vision.image_size_px), dtype)
    picture.write_base(vision, out)
    return out


@pytest.fixture
def picture() -> Picture:
    return open_picture(photo())


@pytest.fixture
def seen(picture: Picture) -> SeenPicture:
    return SeenPicture(picture, VISION, base_of(picture))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_input_of_the_first_pass(picture: Picture, seen: SeenPicture, dtype: type) -> None:
    np.testing.assert_array_equal(base_of(seen, dtype), base_of(picture, dtype))


def test_it_is_not_computed_again(picture: Picture, seen: SeenPicture, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = base_of(picture)
    monkeypatch.setattr(type(picture), "write_base", None)
    np.testing.assert_array_equal(base_of(seen), expected)


def test_another_input_is_computed(picture: Picture, seen: SeenPicture) -> None:
    other = dataclasses.replace(VISION, image_size_px=28)
    np.testing.assert_array_equal(base_of(seen, vision=other), base_of(picture, vision=other))


def test_everything_else_is_that_of_the_picture(picture: Picture, seen: SeenPicture) -> None:
    assert seen.size == picture.size
    assert np.array_equal(np.asarray(seen.as_image()), np.asarray(picture.as_image()))
    assert np.array_equal(np.asarray(seen.part(BOX)), np.asarray(picture.part(BOX)))
    crops = [np.empty((1, 3, 56, 56), np.float32) for _ in range(2)]
    for each, out in zip((seen, picture), crops, strict=True):
        each.write_crops([BOX], VISION, out)
    np.testing.assert_array_equal(crops[0], crops[1])


def test_its_name_is_what_the_model_sees(picture: Picture, seen: SeenPicture) -> None:
    base = base_of(picture)
    assert SeenPicture(picture, VISION, base).digest() == seen.digest()
    base[0, 0, 0, 0] += 1
    assert SeenPicture(picture, VISION, base).digest() != seen.digest()
    assert seen.digest() != picture.digest()
    other = dataclasses.replace(VISION, fit="crop")
    assert SeenPicture(picture, other, base_of(picture)).digest() != seen.digest()
