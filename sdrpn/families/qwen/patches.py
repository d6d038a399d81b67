"""From a picture to the numbers of its patches, in the order in which the merger joins them. Pillow and NumPy only.

N patches. The patches of one image token follow each other, row-major, and the tokens are row-major as well: what the
tower gives for every `merge` * `merge` patches is an image token in its place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.families.qwen.vision_spec import QwenVision
from sdrpn.images.pixels import check_crop, part, require_rgb
from sdrpn.method.grids import Box

__all__ = ["crop_patches", "patch_places", "patches_hw", "picture_patches"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def picture_patches(picture: Image.Image, vision: QwenVision) -> Float32:
    """(N, 3*P*P), channels before rows, of the whole picture: bicubic with antialiasing, normalised.

    A still picture is the same in every frame of a patch, so that one frame says all; the official arrays repeat it.
    Raises BadImage for a picture too small or too long, BadInput where it is not RGB.
    """
    require_rgb(picture)
    resized = picture.resize(vision.budget.size_wh(picture.size), Image.Resampling.BICUBIC)
    return _patches(np.asarray(resized), vision)


def crop_patches(picture: Image.Image, box_xyxy_px: Box, vision: QwenVision) -> Float32:
    """The same of a part of a picture, which has the whole budget for itself. Raises BadInput for a box outside it."""
    require_rgb(picture)
    check_crop(box_xyxy_px, picture.size)
    x1, y1, x2, y2 = box_xyxy_px
    return picture_patches(part(picture, (-x1, -y1), (x2 - x1, y2 - y1)), vision)


def patches_hw(hw: tuple[int, int], merge: int) -> tuple[int, int]:
    """Rows and columns of patches of a grid of image tokens."""
    return hw[0] * merge, hw[1] * merge


def patch_places(hw: tuple[int, int], merge: int) -> tuple[Int64, Int64]:
    """Row and column (N,) each of every patch, in their order; `hw`: the grid of image tokens."""
    rows, columns = np.indices(patches_hw(hw, merge), np.int64)
    return _by_token(rows, merge), _by_token(columns, merge)


def _by_token(values: Int64, merge: int) -> Int64:
    """(gh,gw) row-major to (N,), image token by image token."""
    rows, columns = values.shape
    blocks = values.reshape(rows // merge, merge, columns // merge, merge)
    return blocks.transpose(0, 2, 1, 3).reshape(-1)


def _patches(pixels: npt.NDArray[np.uint8], vision: QwenVision) -> Float32:
    """(H,W,3) bytes to (N, 3*P*P)."""
    merge, side = vision.merge, vision.patch_size_px
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // vision.cell_px, merge, side, width // vision.cell_px, merge, side, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # token row, token column, patch row, patch column, channel, y, x
    table = _normalised_bytes(vision)
    numbers = np.empty(patches.shape, np.float32)
    for channel in range(3):
        numbers[..., channel, :, :] = table[channel][patches[..., channel, :, :]]
    return numbers.reshape(-1, vision.patch_numbers)


def _normalised_bytes(vision: QwenVision) -> Float32:
    """(3,256): (value/255 - mean) / std of each channel."""
    values = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean, std = np.array(vision.image_mean, np.float32), np.array(vision.image_std, np.float32)
    table: Float32 = (values - mean[:, None]) / std[:, None]
    return table
