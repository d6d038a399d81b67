"""What the vision tower reads: narrow pictures without their padding, and the middle of the longer side."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.images import pixels as image_pixels
from sdrpn.images.pixels import base_picture, base_pixels
from sdrpn.images.resample import resample_columns
from sdrpn.method.geometry import Fit

PADDED = VisionSpec(image_size_px=336, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
CUT = dataclasses.replace(PADDED, fit="crop")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("out_size", [1, 7, 40, 100])
@pytest.mark.parametrize("outputs", [range(1), range(3, 30)])
def test_a_part_of_pillows_resize(out_size: int, outputs: range) -> None:
    wanted = range(min(outputs.start, out_size - 1), min(outputs.stop, out_size))
    image = noise(53, 5)
    expected = np.asarray(image.resize((out_size, 5), Image.Resampling.BICUBIC))[:, wanted.start : wanted.stop]
    np.testing.assert_array_equal(resample_columns(np.asarray(image), 0, 53, out_size, wanted), expected)


@pytest.mark.parametrize("size", [(1, 3), (1, 50), (2, 9), (3, 1000), (7, 336), (40, 600), (100, 2000), (1, 4001)])
def test_a_narrow_picture_without_its_padding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for narrow in (0, 10**9):  # always, never
        monkeypatch.setattr(image_pixels, "NARROW", narrow)
        found[narrow] = np.asarray(base_picture(noise(*size), PADDED))
    np.testing.assert_array_equal(found[0], found[10**9])


def transformers_pixels(image: Image.Image) -> npt.NDArray[Any]:
    """As the processor that llava-hf checkpoints come with."""
    transformers = pytest.importorskip("transformers")
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    processor = getattr(transformers, name)(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_mean=list(CUT.image_mean),
        image_std=list(CUT.image_std),
    )
    pixels: npt.NDArray[Any] = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    return pixels


@pytest.mark.parametrize(
    "size", [(640, 480), (300, 900), (336, 336), (97, 61), (1023, 1024), (2000, 1500), (50, 900), (900, 46), (337, 336)]
)
def test_the_middle_of_the_longer_side_equals_transformers(size: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_allclose(base_pixels(image, CUT), transformers_pixels(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 900), (900, 30)])
def test_a_long_picture_is_cut_before_it_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.asarray(base_picture(noise(*size), CUT), np.int16)
    monkeypatch.setattr(image_pixels, "LONG", 1)
    # Pillow may resize the axes in the other order, which rounds in between: one step of 255.
    assert np.abs(whole - np.asarray(base_picture(noise(*size), CUT))).max() <= 1


@pytest.mark.parametrize("vision", [PADDED, CUT], ids=["pad", "crop"])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1)])
def test_strips(vision: VisionSpec, size: tuple[int, int]) -> None:
    assert base_pixels(noise(*size), vision).shape == (3, 336, 336)


def test_another_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="fit is 'stretch'; expected pad or crop"):
        dataclasses.replace(PADDED, fit=cast(Fit, "stretch"))
