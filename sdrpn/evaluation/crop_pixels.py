"""Pictures that crops are cut from in place of the shown one: as large, with other pixels. Pillow; runs no model.

The crops keep their boxes and kept cells, so that the second look has the same tokens in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from sdrpn.families.registry import family_of
from sdrpn.method.roi import Crop
from sdrpn.method.spec import ModelSpec

__all__ = ["base_view_pixels", "blank_pixels", "swapped_pixels"]


def blank_pixels(picture: Image.Image, spec: ModelSpec) -> Image.Image:
    """No content: the colour that is nearest to 0 for the vision tower."""
    return Image.new("RGB", picture.size, family_of(spec).blank_colour(spec.vision))


def base_view_pixels(picture: Image.Image, spec: ModelSpec) -> Image.Image:
    """What the first look shows, enlarged to the picture's size: no detail that it does not have."""
    seen = family_of(spec).seen_picture(picture, spec.vision)
    left, top, right, bottom = (round(edge) for edge in spec.vision.grid(picture.size).extent_px)
    pixels = picture.copy()
    pixels.paste(seen.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    return pixels


def swapped_pixels(
    picture: Image.Image, crops: Sequence[Crop], other: Image.Image, other_crops: Sequence[Crop]
) -> Image.Image:
    """The crops of another picture in the boxes of this one's, in turn; without any, its pixels at the same place."""
    pixels = other.resize(picture.size, Image.Resampling.BICUBIC)
    for number, crop in enumerate(crops if other_crops else ()):
        x1, y1, x2, y2 = crop.box_xyxy_px
        part = other.crop(other_crops[number % len(other_crops)].box_xyxy_px)
        pixels.paste(part.resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC), (x1, y1))
    return pixels
