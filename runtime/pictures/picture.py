"""One upright picture of a question: its size, its digest, and the pixels that the vision tower reads.

With "fast", a JPEG file is decoded at a fraction of its size for the first pass, and each crop is decoded separately at
full size: faster, but the input of the first pass is not bit-identical to that of the training.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput
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
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.runtime.backends.runner import Buffer
from sdrpn.runtime.pictures.gpu_jpeg import GpuPixels, decode_on_gpu
from sdrpn.runtime.pictures.gpu_pixels import fill_on_gpu
from sdrpn.runtime.pictures.jpeg import DENOMINATORS, JpegFile
from sdrpn.runtime.pictures.pixels import Pixels, native_module, thread_count, write_base, write_crops

__all__ = ["Decode", "Picture", "PictureSource", "open_picture"]

Decode: TypeAlias = Literal["exact", "fast", "gpu"]
Planes: TypeAlias = npt.NDArray[Any]

JPEG_SIGNATURE = b"\xff\xd8\xff"
FAST_OVERSIZE = 2  # DCT scaling keeps at least this many times the R pixels of the first pass; the filter does the rest
BAND_ROWS = 256  # rows of a Pillow image that are copied at a time


class Picture:
    """Pixels in memory or on a GPU, or a JPEG file that is decoded in parts. Made by `open_picture`."""

    def __init__(self, pixels: Pixels | GpuPixels | None, file: JpegFile | None, threads: int) -> None:
        self._on_gpu = pixels if isinstance(pixels, GpuPixels) else None
        self._in_memory = None if isinstance(pixels, GpuPixels) else pixels
        self._file, self._threads = file, threads
        self.size: tuple[int, int] = _size_of(pixels) if pixels is not None else _require(file).size

    def digest(self) -> str:
        """A digest; equal for equal pictures that are decoded in the same way."""
        if isinstance(self._in_memory, Image.Image):
            return image_digest(self._in_memory)
        if self._in_memory is not None:
            return pixels_digest(self._in_memory)
        way = "fast" if self._on_gpu is None else "gpu"
        return f"{way} {hashlib.blake2b(_require(self._file).data, digest_size=16).hexdigest()}"

    def as_image(self) -> Image.Image:
        """All of it as an upright RGB image."""
        pixels = self._pixels if self._pixels is not None else _require(self._file).whole(self._threads)
        return pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))

    def part(self, box: Box) -> Image.Image:
        """The part under a box, in pixels of the picture, as an RGB image. Raises BadInput for a box outside it."""
        check_crop(box, self.size)
        pixels, (x1, y1, x2, y2) = self._pixels, box
        if isinstance(pixels, Image.Image):
            return pixels.crop(box)
        found = _require(self._file).part(box) if pixels is None else pixels[y1:y2, x1:x2]
        return Image.fromarray(np.array(found))

    def fill_base(self, vision: SquareVision, buffer: Buffer) -> None:
        """`write_base` to a backend's buffer (1, 3, R, R), on the GPU where the picture is there."""
        if self._on_gpu is not None and vision.fit == "pad":
            box, colour = padded_box(self.size), vision.pad_colour
            if fill_on_gpu(self._on_gpu, [box], "bicubic", colour, vision, buffer):
                return
        buffer.fill(lambda out: self.write_base(vision, out))

    def fill_crops(self, boxes: Sequence[Box], vision: SquareVision, buffer: Buffer) -> None:
        """`write_crops` to a backend's buffer, on the GPU where the picture is there."""
        for box in boxes:
            check_crop(box, self.size)
        if self._on_gpu is not None and fill_on_gpu(self._on_gpu, boxes, "bilinear", None, vision, buffer):
            return
        buffer.fill(lambda out: self.write_crops(boxes, vision, out))

    def write_base(self, vision: SquareVision, out: Planes) -> None:
        """Write the input of the first pass to `out` (1, 3, R, R), float32 or float16. Raises: BadImage."""
        pixels = self._pixels if self._pixels is not None else self._smaller(vision)
        write_base(pixels, vision, out, self._threads)

    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: Planes) -> None:
        """Write each box, in pixels of the picture, to one entry of `out` (N, 3, R, R).

        Raises: BadInput for a box that is empty or extends beyond the picture; BadImage.
        """
        if self._pixels is not None:
            write_crops(self._pixels, boxes, vision, out, self._threads)
            return
        for box, planes in zip(boxes, out, strict=True):
            check_crop(box, self.size)
            part = _require(self._file).part(box)
            whole_part = (0, 0, part.shape[1], part.shape[0])
            write_crops(np.ascontiguousarray(part), [whole_part], vision, planes[None], self._threads)

    @property
    def _pixels(self) -> Pixels | None:
        """All pixels in host memory; None where parts of a file are decoded on demand."""
        return self._in_memory if self._on_gpu is None else self._on_gpu.array

    def _smaller(self, vision: SquareVision) -> npt.NDArray[np.uint8]:
        length = max(self.size) if vision.fit == "pad" else min(self.size)
        fitting = [divisor for divisor in DENOMINATORS if length // divisor >= FAST_OVERSIZE * vision.image_size_px]
        return _require(self._file).smaller(max(fitting, default=1))


PictureSource: TypeAlias = "ImageSource | Picture"


def open_picture(source: PictureSource, *, decode: Decode = "exact", threads: int | None = None) -> Picture:
    """Open a picture like `sdrpn.images.image.open_image`, with the same pixels and the same errors.

    Args:
        source: as for `open_image`, or a Picture, which is returned unchanged
        decode: for JPEG files: "fast" decodes at a fraction of the size for the first pass; "gpu" decodes with
            nvImageCodec
        threads: for decoding and resizing; None: one per core
    Raises: BadImage, BadInput.
    """
    if isinstance(source, Picture):
        return source
    if decode not in get_args(Decode):
        raise BadInput(f"decode is {decode!r}; expected {', '.join(map(repr, get_args(Decode)))}")
    threads = thread_count(threads)
    file = _jpeg_file(source)
    if file is not None and decode == "fast":
        return Picture(None, file, threads)
    if file is not None and decode == "gpu":
        return Picture(decode_on_gpu(file.data), file, threads)
    if file is not None and native_module("_native_jpeg") is not None:
        return Picture(file.whole(threads), None, threads)
    return Picture(_pixels(source), None, threads)


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


def _size_of(pixels: Pixels | GpuPixels) -> tuple[int, int]:
    return pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])


def _require(file: JpegFile | None) -> JpegFile:
    assert file is not None  # a Picture has pixels or a file
    return file
