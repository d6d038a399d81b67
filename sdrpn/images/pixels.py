"""Turn an upright RGB picture, or one crop of it, into the input of the vision tower. Pillow and NumPy only.

`SquareVision.fit` says how the whole picture becomes a square: padded with the mean colour, as LLaVA does and as SD-RPN
was trained, or resized by its shorter side and centre-cropped, as the processor of llava-hf checkpoints does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.images.resample import resample_columns
from sdrpn.method.geometry import Fit, resized_wh
from sdrpn.method.grids import Box

__all__ = [
    "SquareVision",
    "bands",
    "base_picture",
    "base_pixels",
    "check_crop",
    "crop_pixels",
    "padded_box",
    "part",
    "require_rgb",
]

Float32 = npt.NDArray[np.float32]


class SquareVision(Protocol):
    """A model that sees every picture as one square of R x R pixels."""

    @property
    def image_size_px(self) -> int:
        """R."""

    @property
    def fit(self) -> Fit:
        """How a picture becomes a square."""

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """RGB of what makes it one."""

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Taken from the channels, which are in 0..1."""

    @property
    def image_std(self) -> tuple[float, float, float]:
        """What they are divided by then."""


BAND_PIXELS = 4_000_000  # large images are processed in bands of rows, 16 MB each
# Where padding makes up seven eighths of the square, its columns are skipped when resizing.
NARROW = 8
# Above this aspect ratio the longer side is cut before resizing: it would grow to more than 20 * R pixels.
LONG = 20


def padded_box(image_wh: tuple[int, int]) -> Box:
    """The square around the whole image that `base_pixels` covers, in pixels of the image."""
    width, height = image_wh
    side = max(image_wh)
    left, top = (side - width) // 2, (side - height) // 2
    return -left, -top, side - left, side - top


def base_pixels(image: Image.Image, vision: SquareVision) -> Float32:
    """The whole image as the vision tower sees it in the first pass.

    Padded to a square with the mean colour and resized to R x R, or resized by its shorter side to R and
    centre-cropped (`vision.fit`); bicubic, antialiased, normalised. Returns: (3, R, R).
    """
    return _normalised(base_picture(image, vision), vision)


def base_picture(image: Image.Image, vision: SquareVision) -> Image.Image:
    """The picture of `base_pixels` before normalisation: R x R, RGB."""
    require_rgb(image)
    if vision.fit == "crop":
        return _middle_of_longer_side(image, vision.image_size_px)
    x1, y1, x2, y2 = padded_box(image.size)
    side_px, colour = vision.image_size_px, vision.pad_colour
    if image.width * NARROW < x2 - x1:
        return _narrow_squashed(image, (-x1, -y1), x2 - x1, side_px, colour)
    return _squashed(image, (-x1, -y1), (x2 - x1, y2 - y1), side_px, Image.Resampling.BICUBIC, colour)


def crop_pixels(image: Image.Image, box_xyxy_px: Box, vision: SquareVision) -> Float32:
    """One crop, resized to R x R without keeping its aspect ratio (bilinear, antialiased), normalised.

    Returns: (3, R, R). Raises: BadInput for a box that is empty or extends beyond the image.
    """
    require_rgb(image)
    check_crop(box_xyxy_px, image.size)
    x1, y1, x2, y2 = box_xyxy_px
    size, resample = (x2 - x1, y2 - y1), Image.Resampling.BILINEAR
    return _normalised(_squashed(image, (-x1, -y1), size, vision.image_size_px, resample, (0, 0, 0)), vision)


def check_crop(box_xyxy_px: Box, image_wh: tuple[int, int]) -> None:
    """Raise BadInput for a box that is empty or extends beyond the image."""
    (x1, y1, x2, y2), (width, height) = box_xyxy_px, image_wh
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise BadInput(
            f"the crop {tuple(box_xyxy_px)} is empty or extends beyond the image; expected x1 < x2 <= {width} and "
            f"y1 < y2 <= {height}"
        )


def require_rgb(image: Image.Image) -> None:
    """Raise BadInput for an image of another mode."""
    if image.mode != "RGB":
        raise BadInput(f"the image has mode {image.mode}; expected RGB: pass what open_image returns")


def _squashed(
    image: Image.Image,
    offset_xy: tuple[int, int],
    canvas_wh: tuple[int, int],
    side_px: int,
    resample: Image.Resampling,
    colour: tuple[int, int, int],
) -> Image.Image:
    """Paste the image on a canvas and resize that to a square, without allocating the canvas.

    Rows first, rounded to bytes, then columns: the order of the Pillow releases that SD-RPN was trained and published
    with. Newer releases resize the columns of tall images first, which changes the last bit of many pixels. Rows are
    resized independently, so bands of rows and then one narrow strip suffice; rows of padding alone do not change.
    """
    width, height = canvas_wh
    strip = Image.new("RGB", (side_px, height), colour)
    first, last = max(0, offset_xy[1]), min(height, offset_xy[1] + image.height)
    for top, rows in bands(first, last, width):
        band = part(image, (offset_xy[0], offset_xy[1] - top), (width, rows), colour)
        strip.paste(band.resize((side_px, rows), resample), (0, top))
    return strip.resize((side_px, side_px), resample)


def _narrow_squashed(
    image: Image.Image, offset_xy: tuple[int, int], canvas_px: int, side_px: int, colour: tuple[int, int, int]
) -> Image.Image:
    """`_squashed` for a square canvas, bicubic; computes only the columns that show the image."""
    scale = canvas_px / side_px
    reach = 2 * max(1.0, 1 / scale) + 1  # half-width of the kernel, plus one for rounding, in output pixels
    first = max(0, int(offset_xy[0] / scale - reach))
    outputs = range(first, min(side_px, int((offset_xy[0] + image.width) / scale + reach) + 1))
    strip = Image.new("RGB", (side_px, canvas_px), colour)
    for top, rows in bands(0, image.height, 4 * image.width):  # 8 bytes per channel
        pixels = np.asarray(part(image, (0, -top), (image.width, rows)))
        columns = resample_columns(pixels, offset_xy[0], canvas_px, side_px, outputs, colour)
        strip.paste(Image.fromarray(columns), (first, offset_xy[1] + top))
    return strip.resize((side_px, side_px), Image.Resampling.BICUBIC)


def _middle_of_longer_side(image: Image.Image, side_px: int) -> Image.Image:
    """Resize the shorter side to R, the longer one in proportion, and crop the centre, as transformers does."""
    width, height = resized_wh(image.size, side_px)
    left, top = (width - side_px) // 2, (height - side_px) // 2
    if max(width, height) <= LONG * side_px:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return part(resized, (-left, -top), (side_px, side_px))
    if width > height:
        turned = image.transpose(Image.Transpose.TRANSPOSE)
        return _middle_of_height(turned, width, range(left, left + side_px)).transpose(Image.Transpose.TRANSPOSE)
    return _middle_of_height(image, height, range(top, top + side_px))


def _middle_of_height(image: Image.Image, out_height: int, outputs: range) -> Image.Image:
    """Resize the height to `out_height`, computing only the rows `outputs`, and the width to `len(outputs)`."""
    reach = 2 * max(1.0, image.height / out_height) + 1
    first = max(0, int(outputs.start * image.height / out_height - reach))
    last = min(image.height, int(outputs.stop * image.height / out_height + reach) + 1)
    rows = np.asarray(part(image, (0, -first), (image.width, last - first)))
    columns = resample_columns(rows.transpose(1, 0, 2), first, image.height, out_height, outputs)
    middle = Image.fromarray(np.ascontiguousarray(columns.transpose(1, 0, 2)))
    return middle.resize((len(outputs), len(outputs)), Image.Resampling.BICUBIC)


def bands(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    """(top, rows) of bands of rows that hold about BAND_PIXELS."""
    step = max(1, BAND_PIXELS // width)
    for top in range(first, last, step):
        yield top, min(step, last - top)


def part(
    image: Image.Image, offset_xy: tuple[int, int], size_wh: tuple[int, int], colour: tuple[int, int, int] = (0, 0, 0)
) -> Image.Image:
    """A window of the image. `Image.crop` would apply Pillow's size limit again."""
    part = Image.new("RGB", size_wh, colour)
    part.paste(image, offset_xy)
    return part


def _normalised(image: Image.Image, vision: SquareVision) -> Float32:
    """(R, R) RGB to (3, R, R) of (value/255 - mean) / std, through a lookup table of 256 values per channel."""
    values = (np.arange(256) / 255).astype(np.float32)
    mean, std = np.array(vision.image_mean, np.float32), np.array(vision.image_std, np.float32)
    table = (values - mean[:, None]) / std[:, None]  # (3, 256)
    return np.stack([table[channel][plane] for channel, plane in enumerate(np.asarray(image).transpose(2, 0, 1))])
