"""Write the vision tower's input to the caller's memory: the only module that uses the native module.

`sdrpn.images.image` and `sdrpn.images.patches` are the specification, in Pillow and NumPy, and the fallback where the
native module was not compiled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.host.native_modules import native_module
from sdrpn.images.image import base_pixels, check_crop, crop_pixels, padded_box
from sdrpn.images.patches import PatchedVision, columns_first, packed, resized
from sdrpn.images.pixels import SquareVision, part
from sdrpn.method.grids import Box

__all__ = [
    "Pixels",
    "thread_count",
    "write_base",
    "write_crops",
    "write_patches",
]

Pixels: TypeAlias = "Image.Image | npt.NDArray[np.uint8]"
Planes: TypeAlias = npt.NDArray[Any]  # (N, 3, R, R) float32 or float16, C order


def thread_count(wanted: int | None) -> int:
    """The number of threads to use: as wanted (None: one per core), but at most the number of cores."""
    native = native_module()
    cores = native.cores() if native is not None else os.cpu_count() or 1
    return max(1, min(wanted or cores, cores))


def write_base(pixels: Pixels, vision: SquareVision, out: Planes, threads: int = 1) -> None:
    """Write the whole picture to `out` (1, 3, R, R); see `sdrpn.images.image.base_pixels`."""
    native = native_module()
    if native is None or isinstance(pixels, Image.Image) or vision.fit == "crop":
        out[0] = base_pixels(_as_image(pixels), vision)
        return
    box = padded_box((pixels.shape[1], pixels.shape[0]))
    _native_boxes(native, pixels, [box], "bicubic", vision.pad_colour, vision, out, threads)


def write_crops(pixels: Pixels, boxes: Sequence[Box], vision: SquareVision, out: Planes, threads: int = 1) -> None:
    """Write each box to one entry of `out` (N, 3, R, R); see `sdrpn.images.image.crop_pixels`.

    Raises: BadInput for a box that is empty or extends beyond the picture.
    """
    native = native_module()
    if native is None or isinstance(pixels, Image.Image):
        image = _as_image(pixels)
        for box, planes in zip(boxes, out, strict=True):
            planes[...] = crop_pixels(image, box, vision)
        return
    for box in boxes:
        check_crop(box, (pixels.shape[1], pixels.shape[0]))
    _native_boxes(native, pixels, boxes, "bilinear", None, vision, out, threads)


def write_patches(
    pixels: Pixels,
    box: Box,
    sizes: Sequence[tuple[int, int]],
    vision: PatchedVision,
    out: npt.NDArray[np.float32],
    threads: int = 1,
) -> None:
    """Write a part of a picture, resized to each of `sizes` in turn, as patches to `out` (N, 3*P*P), C order.

    See `sdrpn.images.patches`. Raises: BadInput for a box that is empty or extends beyond the picture.
    """
    width, height = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])
    check_crop(box, (width, height))
    native = native_module()
    if native is None or isinstance(pixels, Image.Image):
        x1, y1, x2, y2 = box
        picture = part(_as_image(pixels), (-x1, -y1), (x2 - x1, y2 - y1))
        for size_wh in sizes:
            picture = resized(picture, size_wh)
        out[...] = packed(np.asarray(picture), vision)
        return
    *first, last = sizes
    if first:
        x1, y1, x2, y2 = box
        picture = _as_image(pixels[y1:y2, x1:x2])
        for size_wh in first:
            picture = resized(picture, size_wh)
        pixels, box = np.asarray(picture), (0, 0, *picture.size)
    native.prepare_patches(
        pixels,
        np.array([box], np.int64),
        out,
        size_wh=last,
        patch=vision.patch_size_px,
        merge=vision.merge,
        columns_first=columns_first((box[2] - box[0], box[3] - box[1]), last),
        mean=vision.image_mean,
        std=vision.image_std,
        threads=threads,
    )


def _native_boxes(
    native: ModuleType,
    pixels: npt.NDArray[np.uint8],
    boxes: Sequence[Box],
    resample: str,
    colour: tuple[int, int, int] | None,
    vision: SquareVision,
    out: Planes,
    threads: int,
) -> None:
    native.prepare(
        pixels,
        np.array(boxes, np.int64),
        out,
        filter=resample,
        colour=colour,
        mean=vision.image_mean,
        std=vision.image_std,
        threads=threads,
    )


def _as_image(pixels: Pixels) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
