"""From a picture of any size to the normalised patches of a vision transformer. Pillow and NumPy only.

N patches of P x P pixels, `merge` x `merge` of them to an image token. The patches of a token follow each other,
row-major, and so do the tokens: what a tower makes of each `merge` * `merge` patches is one token in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.images.pixels import check_crop, part, require_rgb
from sdrpn.method.grids import Box

__all__ = ["PatchedVision", "Size", "columns_first", "crop_patches", "packed", "picture_patches", "resized"]

Float32 = npt.NDArray[np.float32]
Size: TypeAlias = tuple[int, int]  # width, height
_CHANNELS = 3


class PatchedVision(Protocol):
    """A model that sees a picture as patches of a resized one, as many as its size asks for."""

    @property
    def patch_size_px(self) -> int:
        """P."""

    @property
    def merge(self) -> int:
        """Patches of an image token on a side."""

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Taken from the channels, which are in 0..1."""

    @property
    def image_std(self) -> tuple[float, float, float]:
        """What they are divided by then."""

    def picture_sizes(self, image_wh: tuple[int, int]) -> Sequence[Size]:
        """The sizes to which a picture is resized, one after the other; the last is whole tokens. Raises BadImage."""

    def crop_sizes(self, crop_wh: tuple[int, int]) -> Sequence[Size]:
        """The same for a crop."""


def picture_patches(picture: Image.Image, vision: PatchedVision) -> Float32:
    """(N, 3*P*P), channels before rows, of a whole RGB picture: bicubic with antialiasing, normalised.

    Raises BadImage for a picture too small or too long, BadInput where it is not RGB.
    """
    require_rgb(picture)
    return _resized_patches(picture, vision.picture_sizes(picture.size), vision)


def crop_patches(picture: Image.Image, box_xyxy_px: Box, vision: PatchedVision) -> Float32:
    """The same of a part of a picture. Raises BadInput for a box that is empty or extends beyond it."""
    require_rgb(picture)
    check_crop(box_xyxy_px, picture.size)
    x1, y1, x2, y2 = box_xyxy_px
    size_wh = x2 - x1, y2 - y1
    return _resized_patches(part(picture, (-x1, -y1), size_wh), vision.crop_sizes(size_wh), vision)


def _resized_patches(picture: Image.Image, sizes: Sequence[Size], vision: PatchedVision) -> Float32:
    for size_wh in sizes:
        picture = resized(picture, size_wh)
    return packed(np.asarray(picture), vision)


def resized(picture: Image.Image, size_wh: tuple[int, int]) -> Image.Image:
    """A picture resized as Pillow 13 does it, whichever release is installed: one axis after the other."""
    first = (picture.width, size_wh[1]) if columns_first(picture.size, size_wh) else (size_wh[0], picture.height)
    return picture.resize(first, Image.Resampling.BICUBIC).resize(size_wh, Image.Resampling.BICUBIC)


def columns_first(image_wh: tuple[int, int], size_wh: tuple[int, int]) -> bool:
    """Whether Pillow resizes along the columns before it resizes along the rows, and rounds to bytes in between.

    Pillow 13's rule: the height loses more than twice as many pixels as the width does. Releases before it resized
    rows first, which changes the last bit of some pixels of tall pictures.
    """
    lost_wh = image_wh[0] - size_wh[0], image_wh[1] - size_wh[1]
    return lost_wh[1] > max(0, 2 * lost_wh[0])


def packed(pixels: npt.NDArray[np.uint8], vision: PatchedVision) -> Float32:
    """(H,W,3) bytes of a resized picture, whole tokens on each side, to (N, 3*P*P)."""
    merge, side = vision.merge, vision.patch_size_px
    cell = merge * side
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // cell, merge, side, width // cell, merge, side, _CHANNELS)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # token row, token column, patch row, patch column, channel, y, x
    table = _normalised_bytes(vision)
    numbers = np.empty(patches.shape, np.float32)
    for channel in range(_CHANNELS):
        numbers[..., channel, :, :] = table[channel][patches[..., channel, :, :]]
    return numbers.reshape(-1, _CHANNELS * side**2)


def _normalised_bytes(vision: PatchedVision) -> Float32:
    """(3,256): (value/255 - mean) / std of each channel."""
    values = (np.arange(256) / 255).astype(np.float32)
    mean, std = np.array(vision.image_mean, np.float32), np.array(vision.image_std, np.float32)
    table: Float32 = (values - mean[:, None]) / std[:, None]
    return table
