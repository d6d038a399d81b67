"""Open untrusted pictures of any format as upright RGB images, and prepare them for the vision tower.

Everything downstream of `open_image` works on upright RGB images; boxes are x1, y1, x2, y2 in their pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadImage
from sdrpn.host.suggestion import did_you_mean_path
from sdrpn.images.grey import eight_bit_grey
from sdrpn.images.limits import check_size
from sdrpn.images.picture_file import identified, loaded, one_line
from sdrpn.images.pixels import bands, base_picture, base_pixels, check_crop, crop_pixels, padded_box, part, require_rgb

__all__ = [
    "MAX_PIXELS",
    "ImageSource",
    "JpegHeader",
    "base_picture",
    "base_pixels",
    "check_array",
    "check_crop",
    "crop_pixels",
    "image_digest",
    "open_image",
    "open_smaller",
    "padded_box",
    "pixels_digest",
    "read_jpeg_header",
]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]"

MAX_PIXELS = 200_000_000
EXIF_ORIENTATION = 0x0112
UPRIGHT = {  # EXIF orientation -> the transpose that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture as upright 8-bit RGB.

    Args:
        source: a path, the bytes of a picture file, a PIL image or an (H, W, 3) uint8 array.
        max_pixels: a larger picture is refused before it is decoded. Pillow's own limit is not used.
    Transparency is dropped, as in LLaVA; an animation gives its first frame (a PIL image its current one); 16-bit
    grey is scaled to 8 bits.
    Raises: BadImage with one line that says what is wrong with the file.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        check_size(source.size, "the image", max_pixels)
        return _decoded(source, "the image")
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), "the image", max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise BadImage(f"an image is a path, bytes, a PIL image or an (H, W, 3) array; got {_kind(source)}")
    try:
        path = Path(source)
        if path.exists() and not path.is_file():
            raise BadImage(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; expected a picture")
        with path.open("rb") as file:
            return _from_file(file, str(path), max_pixels)
    except FileNotFoundError as error:
        meant = did_you_mean_path(path)
        raise BadImage(f"{path} does not exist; expected the path of a picture{meant}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, BadImage):
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise BadImage(f"{os.fspath(source)!r} cannot be read ({reason}); name a picture that you may open") from error


@dataclass(frozen=True)
class JpegHeader:
    """What a decoder other than Pillow needs to know about a JPEG file to produce the same picture."""

    stored_wh: tuple[int, int]  # before the orientation is applied
    orientation: int  # EXIF, 1 to 8
    progressive: bool


def read_jpeg_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> JpegHeader | None:
    """The header of a JPEG file with three colours, as Pillow reads it; decodes nothing.

    Returns: None for every other file, and for those that `open_image` refuses with a message.
    """
    try:
        with identified(io.BytesIO(data), "the image", max_pixels) as image:
            if image.format not in ("JPEG", "MPO") or image.mode != "RGB":
                return None
            orientation = _orientation(image)
            known = orientation if orientation in UPRIGHT else 1
            return JpegHeader(image.size, known, bool(image.info.get("progressive")))
    except BadImage:
        return None


def open_smaller(data: bytes, denominator: int) -> Image.Image:
    """A JPEG file as upright RGB, its sides divided by `denominator` (1, 2, 4 or 8) through DCT scaling."""
    with identified(io.BytesIO(data), "the image", MAX_PIXELS) as image:
        image.draft("RGB", (image.width // denominator, image.height // denominator))
        return _decoded(image, "the image")


def check_array(array: npt.NDArray[Any], *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise BadImage for an array that is not an (H, W, 3) uint8 picture, or is too large."""
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise BadImage(f"an image array has the shape {array.shape} and dtype {array.dtype}; expected (H, W, 3) uint8")
    check_size((array.shape[1], array.shape[0]), "the image array", max_pixels)


def image_digest(image: Image.Image) -> str:
    """Digest of size and pixels: equal images have equal digests, whatever their file format."""
    require_rgb(image)
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    for top, rows in bands(0, image.height, image.width):
        digest.update(part(image, (0, -top), (image.width, rows)).tobytes())
    return digest.hexdigest()


def pixels_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """`image_digest` for an (H, W, 3) array."""
    height, width, _ = pixels.shape
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
    for top, rows in bands(0, height, width):
        digest.update(np.ascontiguousarray(pixels[top : top + rows]).data)
    return digest.hexdigest()


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> Image.Image:
    check_array(array, max_pixels=max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


def _from_file(file: IO[bytes], label: str, max_pixels: int) -> Image.Image:
    with identified(file, label, max_pixels) as image:
        return _decoded(image, label)


def _decoded(image: Image.Image, label: str) -> Image.Image:
    try:
        loaded(image)
        upright = UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
        return rgb if upright is None else _turned(rgb, upright)
    except MemoryError:
        raise
    except BadImage as error:
        raise BadImage(f"{label} {error}") from error
    except Image.DecompressionBombError as error:  # Pillow's TIFF reader checks again while decoding
        raise BadImage(f"{label} is larger than Pillow decodes ({one_line(error)}): scale it down first") from error
    except Exception as error:  # decoders raise exceptions of any type on hostile files
        raise BadImage(f"{label} cannot be decoded: damaged or cut off ({one_line(error)})") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF: the pixels may still be good, use them as stored
        return 1


def _turned(image: Image.Image, transpose: Image.Transpose) -> Image.Image:
    turned = image.transpose(transpose)
    # Pillow copies EXIF and XMP. The orientation in them is applied now: kept, it would be applied twice.
    turned.info.clear()
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return eight_bit_grey(image).convert("RGB")
    if image.mode in ("RGBa", "La"):  # premultiplied alpha: Pillow converts these only to straight alpha
        return image.convert(image.mode.upper()).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB would warn; the colours are the same
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _kind(value: object) -> str:
    return type(value).__name__
