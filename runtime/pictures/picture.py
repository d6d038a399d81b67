"""One upright picture of a question: its size, its digest, and the pixels that the vision tower reads.

With "fast", a JPEG file is decoded at a fraction of its size for the first pass, and each crop is decoded separately at
full size: faster, but the input of the first pass is not bit-identical to that of the training.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.host.native_modules import native_module
from sdrpn.images.image import (
    ImageSource,
    check_array,
    check_crop,
    image_digest,
    open_image,
    padded_box,
    pixels_digest,
    read_jpeg_header,
)
from sdrpn.images.patches import PatchedVision
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.runtime.backends.runner import Buffer
from sdrpn.runtime.pictures.frames import Channels, Frame, rgb_from_frame
from sdrpn.runtime.pictures.gpu_jpeg import GpuPixels, decode_on_gpu
from sdrpn.runtime.pictures.gpu_pixels import fill_on_gpu
from sdrpn.runtime.pictures.jpeg import DENOMINATORS, JpegFile
from sdrpn.runtime.pictures.pixels import Pixels, thread_count, write_base, write_crops, write_patches

__all__ = ["GpuPicture", "JpegMode", "JpegPicture", "Picture", "PictureInMemory", "PictureSource", "open_picture"]

JpegMode: TypeAlias = Literal["exact", "fast", "gpu"]
Planes: TypeAlias = npt.NDArray[Any]
Patches: TypeAlias = npt.NDArray[np.float32]

JPEG_SIGNATURE = b"\xff\xd8\xff"
FAST_OVERSIZE = 2  # DCT scaling keeps at least this many times the R pixels of the first pass; the filter does the rest
BAND_ROWS = 256  # rows of a Pillow image that are copied at a time


class Picture(ABC):
    """An upright picture. Its three kinds differ in where the pixels are; `open_picture` chooses one."""

    size: tuple[int, int]  # (width, height) in pixels

    @abstractmethod
    def digest(self) -> str:
        """A digest; equal for equal pictures that are decoded in the same way."""

    @abstractmethod
    def as_image(self) -> Image.Image:
        """All of it as an upright RGB image."""

    @abstractmethod
    def write_base(self, vision: SquareVision, out: Planes) -> None:
        """Write the input of the first pass to `out` (1, 3, R, R), float32 or float16. Raises: BadImage."""

    @abstractmethod
    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: Planes) -> None:
        """Write each box, in pixels of the picture, to one entry of `out` (N, 3, R, R).

        Raises: BadInput for a box that is empty or extends beyond the picture; BadImage.
        """

    @abstractmethod
    def write_patches(self, vision: PatchedVision, out: Patches) -> None:
        """Write the input of the first pass to `out` (N, 3*P*P). Raises: BadImage."""

    @abstractmethod
    def write_crop_patches(self, box: Box, vision: PatchedVision, out: Patches) -> None:
        """The same of a box, in pixels of the picture. Raises: BadInput for a bad box; BadImage."""

    def part(self, box: Box) -> Image.Image:
        """The part under a box, in pixels of the picture, as an RGB image. Raises BadInput for a box outside it."""
        check_crop(box, self.size)
        return self._part(box)

    @abstractmethod
    def _part(self, box: Box) -> Image.Image:
        """The part under a box inside the picture."""

    def fill_base(self, vision: SquareVision, buffer: Buffer) -> None:
        """`write_base` to a backend's buffer (1, 3, R, R), on the GPU where the picture is there."""
        buffer.fill(lambda out: self.write_base(vision, out))

    def fill_crops(self, boxes: Sequence[Box], vision: SquareVision, buffer: Buffer) -> None:
        """`write_crops` to a backend's buffer, on the GPU where the picture is there."""
        for box in boxes:
            check_crop(box, self.size)
        buffer.fill(lambda out: self.write_crops(boxes, vision, out))


class PictureInMemory(Picture):
    """All pixels in host memory: an array (H, W, 3) uint8, or a Pillow image."""

    def __init__(self, pixels: Pixels, threads: int) -> None:
        self._pixels, self._threads = pixels, threads
        self.size = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])

    def digest(self) -> str:
        """A digest of the pixels, whatever they were read from."""
        return image_digest(self._pixels) if isinstance(self._pixels, Image.Image) else pixels_digest(self._pixels)

    def as_image(self) -> Image.Image:
        """See `Picture`."""
        return _image_of(self._pixels)

    def write_base(self, vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        write_base(self._pixels, vision, out, self._threads)

    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        write_crops(self._pixels, boxes, vision, out, self._threads)

    def write_patches(self, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        write_patches(self._pixels, (0, 0, *self.size), vision.picture_sizes(self.size), vision, out, self._threads)

    def write_crop_patches(self, box: Box, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        check_crop(box, self.size)
        write_patches(self._pixels, box, vision.crop_sizes(_size_of(box)), vision, out, self._threads)

    def _part(self, box: Box) -> Image.Image:
        return _part_of(self._pixels, box)


class JpegPicture(Picture):
    """A JPEG file: decoded at a fraction of its size for the first pass, and in parts for crops ("fast")."""

    def __init__(self, file: JpegFile, threads: int) -> None:
        self._file, self._threads = file, threads
        self.size = file.size

    def digest(self) -> str:
        """A digest of the file."""
        return f"fast {_file_digest(self._file)}"

    def as_image(self) -> Image.Image:
        """See `Picture`."""
        return _image_of(self._file.whole(self._threads))

    def write_base(self, vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        length = max(self.size) if vision.fit == "pad" else min(self.size)
        write_base(self._smaller(length, vision.image_size_px), vision, out, self._threads)

    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        for box, planes in zip(boxes, out, strict=True):
            check_crop(box, self.size)
            part = np.ascontiguousarray(self._file.part(box))
            whole_part = (0, 0, part.shape[1], part.shape[0])
            write_crops(part, [whole_part], vision, planes[None], self._threads)

    def write_patches(self, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        sizes = vision.picture_sizes(self.size)
        pixels = self._smaller(max(self.size), max(sizes[0]))
        write_patches(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), sizes, vision, out, self._threads)

    def write_crop_patches(self, box: Box, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        check_crop(box, self.size)
        part = np.ascontiguousarray(self._file.part(box))
        sizes = vision.crop_sizes(_size_of(box))
        write_patches(part, (0, 0, part.shape[1], part.shape[0]), sizes, vision, out, self._threads)

    def _smaller(self, length_px: int, wanted_px: int) -> npt.NDArray[np.uint8]:
        """All of it, decoded at a fraction that keeps FAST_OVERSIZE times the wanted pixels of a length."""
        fitting = [divisor for divisor in DENOMINATORS if length_px // divisor >= FAST_OVERSIZE * wanted_px]
        return self._file.smaller(max(fitting, default=1))

    def _part(self, box: Box) -> Image.Image:
        return Image.fromarray(np.array(self._file.part(box)))


class GpuPicture(Picture):
    """All pixels of a JPEG file in GPU memory ("gpu"); copied to host memory only where the GPU cannot go on."""

    def __init__(self, pixels: GpuPixels, file: JpegFile, threads: int) -> None:
        self._pixels, self._file, self._threads = pixels, file, threads
        self.size = (pixels.shape[1], pixels.shape[0])

    def digest(self) -> str:
        """A digest of the file."""
        return f"gpu {_file_digest(self._file)}"

    def as_image(self) -> Image.Image:
        """See `Picture`."""
        return _image_of(self._pixels.array)

    def fill_base(self, vision: SquareVision, buffer: Buffer) -> None:
        """See `Picture`."""
        box, colour = padded_box(self.size), vision.pad_colour
        if vision.fit != "pad" or not fill_on_gpu(self._pixels, [box], "bicubic", colour, vision, buffer):
            super().fill_base(vision, buffer)

    def fill_crops(self, boxes: Sequence[Box], vision: SquareVision, buffer: Buffer) -> None:
        """See `Picture`."""
        for box in boxes:
            check_crop(box, self.size)
        if not fill_on_gpu(self._pixels, boxes, "bilinear", None, vision, buffer):
            super().fill_crops(boxes, vision, buffer)

    def write_base(self, vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        write_base(self._pixels.array, vision, out, self._threads)

    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        write_crops(self._pixels.array, boxes, vision, out, self._threads)

    def write_patches(self, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        sizes = vision.picture_sizes(self.size)
        write_patches(self._pixels.array, (0, 0, *self.size), sizes, vision, out, self._threads)

    def write_crop_patches(self, box: Box, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        check_crop(box, self.size)
        write_patches(self._pixels.array, box, vision.crop_sizes(_size_of(box)), vision, out, self._threads)

    def _part(self, box: Box) -> Image.Image:
        return _part_of(self._pixels.array, box)


PictureSource: TypeAlias = "ImageSource | Frame | Picture"


def open_picture(
    source: PictureSource, *, jpeg: JpegMode = "exact", threads: int | None = None, channels: Channels = "rgb"
) -> Picture:
    """Open a picture like `sdrpn.images.image.open_image`, with the same pixels and the same errors.

    Args:
        source: as for `open_image`, a frame as for `rgb_from_frame`, or a Picture, which is returned unchanged
        jpeg: how JPEG files are decoded: "fast" at a fraction of the size for the first pass; "gpu" with nvImageCodec
        threads: for decoding and resizing; None: one per core
        channels: the order that an array or a tensor has them in; files and PIL images say so themselves
    Raises: BadImage, BadInput.
    """
    if isinstance(source, Picture):
        return source
    frame = rgb_from_frame(source, channels)
    source = cast("ImageSource", source if frame is None else frame)
    if jpeg not in get_args(JpegMode):
        raise BadInput(f"jpeg is {jpeg!r}; expected {', '.join(map(repr, get_args(JpegMode)))}", options=("jpeg",))
    threads = thread_count(threads)
    file = _jpeg_file(source)
    if file is not None and jpeg == "fast":
        return JpegPicture(file, threads)
    if file is not None and jpeg == "gpu":
        return GpuPicture(decode_on_gpu(file.data), file, threads)
    if file is not None and native_module("_native_jpeg") is not None:
        return PictureInMemory(file.whole(threads), threads)
    return PictureInMemory(_pixels(source), threads)


def _jpeg_file(source: ImageSource) -> JpegFile | None:
    """None for anything but a readable JPEG file with three colours: `open_image` raises the error."""
    data = source if isinstance(source, bytes) else _jpeg_bytes(source)
    if data is None or not data.startswith(JPEG_SIGNATURE):
        return None
    header = read_jpeg_header(data)
    return JpegFile(source, data, header) if header is not None else None


def _jpeg_bytes(source: ImageSource) -> bytes | None:
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        path = Path(source)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            signature = file.read(len(JPEG_SIGNATURE))
            return signature + file.read() if signature == JPEG_SIGNATURE else None
    except (OSError, ValueError):
        return None


def _pixels(source: ImageSource) -> Pixels:
    """An array where the native module can read it, else a Pillow image."""
    if native_module() is None:
        return open_image(source)
    if isinstance(source, np.ndarray) and _is_readable(source):
        check_array(source)
        return source
    return _array_of(open_image(source))


def _is_readable(array: npt.NDArray[Any]) -> bool:
    """Whether the native module can read the array without a copy; other errors are raised by `open_image`."""
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        return False
    return array.strides[1:] == (3, 1) and array.strides[0] >= 3 * array.shape[1]


def _array_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """An array (H, W, 3), copied in bands, because Pillow makes two further copies of exported pixels."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, image.height)
        band = Image.new("RGB", (image.width, bottom - top))
        band.paste(image, (0, -top))  # `Image.crop` would apply Pillow's own size limit
        pixels[top:bottom] = np.asarray(band)
    return pixels


def _image_of(pixels: Pixels) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))


def _part_of(pixels: Pixels, box: Box) -> Image.Image:
    x1, y1, x2, y2 = box
    return pixels.crop(box) if isinstance(pixels, Image.Image) else Image.fromarray(np.array(pixels[y1:y2, x1:x2]))


def _size_of(box: Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _file_digest(file: JpegFile) -> str:
    return hashlib.blake2b(file.data, digest_size=16).hexdigest()
